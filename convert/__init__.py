"""Move checkpoints between PyTorch, TensorFlow and other systems, and prove that both sides compute the same."""

from algpt2.imports.lazy import lazy_names

# Importing both frameworks takes seconds, which the help of the command line need not wait for.
_MODULES = {
    "convert.conversion": ("pt2tf", "tf2pt", "to_tf", "to_pt"),
    "convert.plain_gpt2": ("to_gpt2",),
    "convert.carry_run": ("pt2tf_run", "tf2pt_run"),
    "convert.inspection": ("inspect_checkpoint",),
    "convert.verification": ("compare_directory", "verify"),
}

__all__ = [name for names in _MODULES.values() for name in names]

__getattr__, __dir__ = lazy_names(__name__, _MODULES)
