"""Perplexity, by protocols that both frameworks share."""

PROTOCOLS = ("stream", "line", "sliding")
