"""`python -m convert`: see `convert/command_line.py`."""

import os
import sys

if sys.argv[1:2] == ["inspect"]:
    # transformers imports PyTorch wherever it is installed, which a look at some headers need not wait for.
    sys.modules.setdefault("torch", None)
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from convert.cli import main

if __name__ == "__main__":
    main()
