"""`generate --runtime onnx`, with and without the frameworks."""

import json
import shutil
import subprocess
import sys

import pytest
from command_lines import run
from isolation import ROOT, TENSORFLOW, TORCH, run_without
from models import save_checkpoint, tiny_config

from algpt2_pt import generate
from convert.export import export

OPTIONS = ("--max-new-tokens", "100")


@pytest.fixture(scope="module")
def checkpoint(text_tokenizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("onnx")
    save_checkpoint(directory / "model", tiny_config(vocab_size=len(text_tokenizer)), tokenizer=text_tokenizer)
    export(directory / "model", "onnx", directory / "exported")
    export(directory / "model", "onnx", directory / "q4", quantize="q4")
    return directory


def test_the_text_is_that_of_pytorch_past_the_context_too(checkpoint, capsys):
    texts = set()
    for arguments in (("model",), ("model", "--runtime", "onnx"), ("exported", "--runtime", "onnx")):
        code, out, err = run(capsys, generate, checkpoint / arguments[0], "The value of", *arguments[1:], *OPTIONS)
        assert code == 0, err
        texts.add(out)
    assert len(texts) == 1 and len(texts.pop()) > 100


def test_it_samples_and_rounds(checkpoint, capsys):
    arguments = (checkpoint / "q4", "The value of", "--runtime", "onnx", "--top-p", "0.9", *OPTIONS)
    first, again, other = (run(capsys, generate, *arguments, "--seed", seed)[1] for seed in (1, 1, 2))
    assert first == again != other


def test_no_framework_is_needed(checkpoint):
    code = f"from algpt2_pt import generate; generate.main({[str(checkpoint / 'q4'), 'The', '--runtime', 'onnx']!r})"
    result = run_without((*(name for name in TORCH if name != "algpt2_pt"), *TENSORFLOW, "onnx"), code)
    assert result.returncode == 0 and result.stdout.startswith("The"), result.stderr


@pytest.mark.parametrize("command", [["-m", "algpt2_pt.generate"], ["-m", "algpt2", "generate"]])
def test_a_process_that_runs_a_graph_imports_only_what_it_needs(checkpoint, command):
    command = [sys.executable, "-X", "importtime", *command, checkpoint / "q4", "The", "--runtime", "onnx"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    imports = [line.rpartition("| ")[2].strip() for line in result.stderr.splitlines()]
    assert result.returncode == 0 and result.stdout.startswith("The")
    assert "onnxruntime" in imports and not {"torch", "transformers"} & set(imports)
    assert all(line.startswith("import time:") for line in result.stderr.splitlines()), result.stderr


@pytest.mark.parametrize("prompt", ["The", "The " * 200])
def test_a_configuration_of_another_model_is_one_line(prompt, checkpoint, tmp_path, capsys):
    shutil.copytree(checkpoint / "q4", tmp_path, dirs_exist_ok=True)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_positions": 500}))
    code, _, err = run(capsys, generate, tmp_path, prompt, "--runtime", "onnx", "--max-new-tokens", "300")
    assert code == 2 and "config.json or the tokenizer may be of another model" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("directory", "options", "message"),
    [
        ("exported", ("--runtime", "onnx", "--quantize", "q4"), "holds no onnx/model_q4.onnx"),
        ("model", ("--quantize", "q4"), "--quantize q4 is for --runtime onnx"),
    ],
)
def test_what_is_not_there_is_one_line(directory, options, message, checkpoint, capsys):
    code, _, err = run(capsys, generate, checkpoint / directory, "The", *options)
    assert code == 2 and message in err and len(err.splitlines()) == 1
