"""transformers without PyTorch, in a process that may use PyTorch all the same."""

import subprocess
import sys

import pytest

CODE = """
import sys
from algpt2.imports.transformers import use_transformers_without_torch
use_transformers_without_torch()
from transformers import AutoTokenizer
assert "torch" not in sys.modules
import torch
assert torch.ones(2).sum() == 2
"""


@pytest.mark.parametrize(("first", "code"), [("", 0), ("import torch", 1)])
def test_transformers_does_not_import_torch_but_who_needs_it_can(first, code):
    result = subprocess.run([sys.executable, "-c", first + CODE], capture_output=True, text=True, timeout=300)
    # What was imported before is left.
    assert result.returncode == code, result.stderr
    assert not result.stderr or code
