"""What the losses of both frameworks share."""

# The label of a token that is not counted, as transformers has it.
IGNORED = -100
# How many logits a loss in chunks holds at once: enough for efficient matrix products, 32 MB in float32.
LOGITS_IN_CHUNK = 1 << 23
