"""Perplexity, by protocols that both frameworks share."""
