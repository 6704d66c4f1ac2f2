"""Imports that libraries make, and that commands do not need and would wait for."""

import contextlib
import gc
import os
import sys

# Packages that Keras and KerasHub import for features that no command of this project uses.
UNNEEDED_BY_KERAS = ("sklearn", "rouge_score", "matplotlib", "pandas")


@contextlib.contextmanager
def hidden(*packages):
    """A context in which packages that were not imported yet seem not to be installed.

    Args:
        *packages: str.

    Example:
        >>> import importlib.util
        >>> with hidden("antigravity"):
        ...     importlib.util.find_spec("antigravity") is None
        True
    """
    packages = [package for package in packages if package not in sys.modules]
    sys.modules.update(dict.fromkeys(packages))
    try:
        yield
    finally:
        for package in packages:
            sys.modules.pop(package, None)


@contextlib.contextmanager
def uncollected():
    """A context in which Python looks for no garbage: imports leave next to none, and looking takes a second or two.

    What there is by then is not looked at later either (`gc.freeze`).

    Example:
        >>> import gc
        >>> with uncollected():
        ...     gc.isenabled()
        False
        >>> gc.isenabled()
        True
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def use_transformers_without_torch():
    """Have transformers do without PyTorch in this process; without effect once either was imported.

    It imports PyTorch where that is installed, which takes seconds, and decides once whether it is.
    """
    if "torch" in sys.modules or "transformers" in sys.modules:
        return
    # It would say that no model can be used.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    with hidden("torch"):
        from transformers.utils import is_torch_available

        is_torch_available()
