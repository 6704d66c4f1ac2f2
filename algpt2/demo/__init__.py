"""A page to try checkpoints on: continuations side by side, the loss of every token, and perplexity as figures."""
