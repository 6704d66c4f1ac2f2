"""A smaller ALGPT2 that computes about the same as a given one: what `python -m convert compress` is made of."""

# How a shared block may start, and the tokens that a calibration reads by default; the command line shows both.
STARTS = ("average", "first", "stepwise", "svd")
TOKENS = 32_768
