"""The command lines of https://github.com/tGhattas/ALGPT2, over those of this project."""
