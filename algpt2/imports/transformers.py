"""transformers without PyTorch."""

import os
import sys


def use_transformers_without_torch():
    """Have transformers do without PyTorch in this process; without effect once either was imported.

    It imports PyTorch where that is installed, which takes seconds, and decides once whether it is.
    """
    if "torch" in sys.modules or "transformers" in sys.modules:
        return
    # It would say that no model can be used.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    sys.modules["torch"] = None
    try:
        from transformers.utils import is_torch_available

        is_torch_available()
    finally:
        del sys.modules["torch"]
