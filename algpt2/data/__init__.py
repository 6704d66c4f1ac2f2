"""Text to tokens to blocks."""
