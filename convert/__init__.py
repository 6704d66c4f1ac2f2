"""Move ALGPT2 checkpoints between PyTorch and TensorFlow, and prove that both compute the same."""

import importlib

_MODULES = {"pt2tf": "convert.conversion", "tf2pt": "convert.conversion", "compare_directory": "convert.verification"}

__all__ = list(_MODULES)


def __getattr__(name):
    # Importing both frameworks takes seconds, which the help of the command line need not wait for.
    if name not in _MODULES:
        raise AttributeError(f"module 'convert' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
