"""The configuration by the name that it has beside a saved model, where modeling_algpt2.py finds it too."""

from algpt2.configuration import ALGPT2Config

__all__ = ["ALGPT2Config"]
