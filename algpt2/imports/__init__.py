"""The frameworks, when modules are imported, and what libraries learn of them then."""
