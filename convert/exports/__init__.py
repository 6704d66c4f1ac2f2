"""Formats for deployment, a module each: what it needs, how it is written, and what its runtime computes."""
