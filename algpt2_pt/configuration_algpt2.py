"""The configuration under the name that it has beside a saved model, so that modeling_algpt2.py finds it here too."""

from algpt2.configuration import ALGPT2Config

__all__ = ["ALGPT2Config"]
