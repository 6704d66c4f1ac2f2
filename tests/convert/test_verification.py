"""`verify`: what is compared, on what, and that differences are found."""

import json

import numpy as np
import pytest
from command_lines import run
from isolation import TENSORFLOW, TORCH, run_without
from models import random_weights, save_checkpoint, tiny_config
from transformers import GPT2Config, GPT2LMHeadModel

import convert.__main__ as main_module
from convert import pt2tf, to_gpt2, to_tf


def rows(out):
    """The cells of the lines of a table, without the headings, by the first cell."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines[1:]}


NAMES = [
    "loss (fixed ids, length 64)",
    "perplexity",
    "largest logit difference, unpadded",
    "largest logit difference, padded",
    "hidden state that enters depth 0",
    "hidden state that enters depth 1",
    "hidden state that enters depth 2",
    "greedy continuation, 24 tokens",
]


@pytest.mark.slow
def test_one_directory_in_both_frameworks(capsys, tmp_path):
    directory = save_checkpoint(tmp_path / "checkpoint")
    code, out, _ = run(capsys, main_module, "verify", directory)
    assert code == 0 and list(rows(out)) == NAMES and "FAILED" not in out
    assert "| PyTorch" in out and "| TensorFlow" in out
    # The weights of both frameworks, where they are there.
    pt2tf(directory)
    weights = random_weights(tiny_config(), "float32")
    weights["transformer.ln_f.bias"] += 0.1
    save_checkpoint(directory, weights=weights)
    code, out, err = run(capsys, main_module, "verify", directory)
    assert code == 1 and "the models differ beyond tolerance" in err
    failed = [name for name, cells in rows(out).items() if cells[-1] == "FAILED"]
    assert set(NAMES[:4]) <= set(failed) and not set(NAMES[4:7]) & set(failed)


@pytest.mark.slow
def test_on_text(text_tokenizer, capsys, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=0)
    directory = save_checkpoint(tmp_path / "checkpoint", config, tokenizer=text_tokenizer)
    options = ("--dataset", "python-docs", "--length", 64, "--prompt", "The value")
    code, out, _ = run(capsys, main_module, "verify", directory, *options)
    assert code == 0 and "loss (protocol stream, length 64)" in rows(out)
    # The continuation is shown as text.
    first, second = rows(out)[NAMES[-1]][:2]
    assert first == second and first.startswith(("'", '"'))


@pytest.mark.slow
def test_two_directories(capsys, tmp_path):
    directory = save_checkpoint(tmp_path / "checkpoint")
    target = to_tf(directory, tmp_path / "tf").directory
    code, out, _ = run(capsys, main_module, "verify", directory, target, "--json")
    report = json.loads(out)
    assert code == 0 and report["sides"] == ["PyTorch", "TensorFlow"]
    assert all(row["passed"] for row in report["comparisons"])
    assert all(0 <= row["difference"] <= row["tolerance"] for row in report["comparisons"][:-1])
    # A difference in one depth is seen from there on.
    weights = random_weights(tiny_config(), "float32")
    weights["transformer.h.1.mlp.c_fc.bias"] += 0.01
    other = save_checkpoint(tmp_path / "other", weights=weights)
    code, out, _ = run(capsys, main_module, "verify", directory, other, "--json")
    failed = {row["name"] for row in json.loads(out)["comparisons"] if not row["passed"]}
    # Block 1 is the last of the schedule 0, 0, 1.
    assert code == 1 and {NAMES[0], NAMES[2], NAMES[3]} <= failed and not set(NAMES[4:7]) & failed


@pytest.mark.slow
@pytest.mark.parametrize("keras_hub", [False, True])
def test_a_gpt2_runs_in_its_own_library(keras_hub, capsys, tmp_path):
    directory = save_checkpoint(tmp_path / "checkpoint")
    target = to_gpt2(directory, tmp_path / "gpt2", keras_hub=keras_hub).directory
    code, out, _ = run(capsys, main_module, "verify", directory, target)
    assert code == 0 and ("KerasHub's GPT-2" if keras_hub else "transformers' GPT-2") in out
    code, out, _ = run(capsys, main_module, "verify", target)
    assert code == 0 and "FAILED" not in out


def test_a_gpt2_of_transformers_is_compared_with_itself_here(capsys, tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=40, n_embd=24, n_layer=2, n_head=3, eos_token_id=0))
    model.save_pretrained(tmp_path)
    code, out, _ = run(capsys, main_module, "verify", tmp_path)
    assert code == 0 and "transformers' GPT-2" in out and "TensorFlow" in out


def test_models_of_other_shapes_are_not_compared(capsys, tmp_path):
    first = save_checkpoint(tmp_path / "first")
    second = save_checkpoint(tmp_path / "second", tiny_config(layer_schedule=[0, 0, 1, 1]))
    code, out, err = run(capsys, main_module, "verify", first, second)
    assert code == 2 and not out and "n_layer is 3 and 4; nothing to compare" in err


def test_a_logit_that_is_not_a_number_fails():
    from convert.verification import compare_numbers

    array = np.ones((2, 3))
    broken = np.where(np.arange(3) == 1, np.nan, array)
    assert compare_numbers("same", (array, array), 1e-5).passed
    assert not compare_numbers("broken", (array, broken), 1e-5).passed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "missing"),
    [("verify", TORCH), ("pt2tf", TENSORFLOW), ("pt2tf --training-state", TENSORFLOW)],
    ids=["verify", "convert", "carry"],
)
def test_a_framework_that_is_not_installed(command, missing, tmp_path):
    save_checkpoint(tmp_path / "checkpoint")
    name, *flags = command.split()
    arguments = [name, str(tmp_path / "checkpoint"), *flags]
    arguments += ["--output", str(tmp_path / "new")] if name == "pt2tf" else []
    process = run_without(missing, f"from convert.cli import main; main({arguments})")
    assert process.returncode == 2 and "Traceback" not in process.stderr, process.stderr
    assert "cannot be imported" in process.stderr and "the README tells what to install" in process.stderr
    assert ("--no-verify leaves the comparison out" in process.stderr) == (command == "pt2tf")
