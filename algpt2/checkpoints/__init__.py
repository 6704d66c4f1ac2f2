"""Weights on disk: canonical weights, the files that hold them and the systems that wrote them."""

CONFIG_FILE = "config.json"
MODEL_CARD_FILE = "README.md"
