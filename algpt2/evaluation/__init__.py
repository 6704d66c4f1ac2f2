"""Perplexity, by protocols that both frameworks share."""

PROTOCOLS = ("stream", "line", "sliding")
# The most rows at once, where nothing else is asked for: the logits of more may not fit into memory.
EVALUATION_BATCH = 16
