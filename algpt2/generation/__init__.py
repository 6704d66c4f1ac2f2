"""Continuations of texts, by functions that either framework gives."""
