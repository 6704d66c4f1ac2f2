"""Libraries without what they do not need, in a process that may use that all the same."""

import gc
import os
import subprocess
import sys

import pytest
from isolation import ROOT
from models import save_checkpoint, tiny_config

from algpt2 import cli

COMMANDS = (
    ("algpt2_tf.train", "--dataset", "missing"),
    ("algpt2_tf.generate", "missing", "The"),
    ("algpt2_tf.tfrecords", "--dataset", "missing", "--output-dir", "records", "--tokenizer", "no", "--length", "8"),
    ("algpt2.tokenization", "train", "--dataset", "missing", "--output-dir", "tokenizer"),
)
CODE = """
import sys
from algpt2.imports.unneeded import use_transformers_without_torch
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


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_commands_that_have_no_use_for_torch_do_not_import_it(command, tmp_path):
    command = [sys.executable, "-X", "importtime", "-m", *command]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    imports = [line.rpartition("| ")[2].strip() for line in result.stderr.splitlines()]
    assert result.returncode == 2 and "error: " in result.stderr
    # A package that is not found is in the list by its own name alone.
    unneeded = {"torch", "sklearn.base", "rouge_score.rouge_scorer"}
    if "--dataset" not in command:
        # The library that looks for a dataset on the hub has a use for them.
        unneeded |= {"matplotlib.figure", "pandas.core"}
    assert "transformers" in imports and not unneeded & set(imports)


def test_a_text_needs_no_peft(text_tokenizer, tmp_path):
    model = save_checkpoint(tmp_path, tiny_config(vocab_size=len(text_tokenizer)), tokenizer=text_tokenizer)
    command = [sys.executable, "-X", "importtime", "-m", "algpt2_pt.generate", model, "The", "--max-new-tokens", "2"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-500:]
    imports = [line.rpartition("| ")[2].strip() for line in result.stderr.splitlines()]
    assert "transformers" in imports and "peft.peft_model" not in imports


def test_no_garbage_is_looked_for_while_a_command_imports_even_in_vain(monkeypatch, capsys):
    enabled = []

    def fail(name):
        enabled.append(gc.isenabled())
        raise ImportError(name)

    monkeypatch.setattr(cli, "is_command", lambda: True)
    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(SystemExit) as end:
        cli.run_command(cli.Parser(), "missing.program", [])
    assert end.value.code == 2 and "missing cannot be imported" in capsys.readouterr().err
    assert enabled == [False] and gc.isenabled()


@pytest.mark.slow
def test_main_of_a_command_leaves_torch_to_a_process_of_another_kind():
    code = """
import sys
from algpt2_tf import tfrecords
sys.argv = ["tfrecords", "--dataset", "missing", "--output-dir", "records", "--tokenizer", "no", "--length", "8"]
try:
    tfrecords.main()
except SystemExit as end:
    assert end.code == 2
from algpt2_pt import ALGPT2LMHeadModel
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert result.returncode == 0, result.stderr
