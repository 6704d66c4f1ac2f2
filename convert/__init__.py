"""Move checkpoints between PyTorch, TensorFlow and other systems, and prove that both sides compute the same."""

import importlib

_MODULES = {
    **dict.fromkeys(("pt2tf", "tf2pt", "to_tf", "to_pt"), "convert.conversion"),
    "to_gpt2": "convert.plain_gpt2",
    **dict.fromkeys(("pt2tf_run", "tf2pt_run"), "convert.carry_run"),
    "inspect_checkpoint": "convert.inspection",
    **dict.fromkeys(("compare_directory", "verify"), "convert.verification"),
}

__all__ = list(_MODULES)


def __getattr__(name):
    # Importing both frameworks takes seconds, which the help of the command line need not wait for.
    if name not in _MODULES:
        raise AttributeError(f"module 'convert' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
