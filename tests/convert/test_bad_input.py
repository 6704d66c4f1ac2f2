"""Wrong input to every command: one line that names the file, exit code 2, and nothing written or changed."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from command_lines import run
from models import random_weights, save_checkpoint, tiny_config

import convert.__main__ as main_module
from algpt2.checkpoints.checkpoint import write_checkpoint_weights
from algpt2.data.train_tokenizer import train_tokenizer

ROOT = Path(__file__).parents[2]
INDEX = "model.safetensors.index.json"


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def with_weights(**changes):
    """A damage that replaces weights; `None` removes one."""

    def change(directory):
        weights = random_weights(tiny_config(), "float32")
        for name, change in changes.items():
            name = name.replace("__", ".")
            if change is None:
                del weights[name]
            else:
                weights[name] = change(weights[name]) if callable(change) else change
        save_checkpoint(directory, weights=weights)

    return change


def with_config(**changes):
    def change(directory):
        stored = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**stored, **changes}))

    return change


def cut(name):
    def change(directory):
        content = (directory / name).read_bytes()
        (directory / name).write_bytes(content[: len(content) * 2 // 3])

    return change


def as_keras(change):
    """A damage of the Keras weights alone."""

    def both(directory):
        (directory / "model.safetensors").unlink()
        write_checkpoint_weights(directory, tiny_config(), random_weights(tiny_config(), "float32"), "tensorflow")
        change(directory)

    return both


def as_pytorch(value):
    def change(directory):
        (directory / "model.safetensors").unlink()
        state = {n: torch.from_numpy(a) for n, a in random_weights(tiny_config(), "float32").items()}
        extra = {"malicious": Malicious(directory.parent / "ran")} if value == "malicious" else {}
        torch.save({**state, **extra}, directory / "pytorch_model.bin")
        if value == "cut":
            cut("pytorch_model.bin")(directory)

    return change


def as_shards(change):
    """A damage of weights in several files."""

    def both(directory):
        (directory / "model.safetensors").unlink()
        weights = random_weights(tiny_config(), "float32")
        write_checkpoint_weights(directory, tiny_config(), weights, "pytorch", max_shard_size=4000)
        change(directory)

    return both


def with_index(change):
    def both(directory):
        index = json.loads((directory / INDEX).read_text())
        change(index["weight_map"])
        (directory / INDEX).write_text(json.dumps(index))

    return both


def with_large_tokenizer(directory):
    train_tokenizer(["some text"], 300).save_pretrained(directory)


def nan(array):
    array = array.copy()
    array.flat[-1] = np.nan
    return array


BIAS = "transformer__ln_f__bias"
DAMAGES = {
    "truncated safetensors": (cut("model.safetensors"), "model.safetensors: not readable as safetensors"),
    "truncated h5": (as_keras(cut("model.weights.h5")), "model.weights.h5: not readable as HDF5"),
    "truncated bin": (as_pytorch("cut"), "pytorch_model.bin: not readable as tensors"),
    "truncated config": (cut("config.json"), "config.json: not readable as JSON"),
    "truncated index": (as_shards(cut(INDEX)), f"{INDEX}: not readable as JSON"),
    "index without a tensor": (
        as_shards(with_index(lambda index: index.pop("transformer.ln_f.bias"))),
        "and the index disagree on tensor transformer.ln_f.bias",
    ),
    "path traversal": (
        as_shards(with_index(lambda index: index.update({"transformer.wte.weight": "../../secret.safetensors"}))),
        "'../../secret.safetensors' must be a file name in the same directory",
    ),
    "malicious pickle": (as_pytorch("malicious"), "pytorch_model.bin: not readable as tensors that torch.save wrote"),
    "missing tensor": (with_weights(**{BIAS: None}), "missing: transformer.ln_f.bias (24,)"),
    "extra tensor": (with_weights(more=np.ones(3, "float32")), "unexpected: more (3,)"),
    "misshapen tensor": (
        with_weights(**{BIAS: np.ones(23, "float32")}),
        "misshapen: transformer.ln_f.bias is (23,), expected (24,)",
    ),
    "tensor of integers": (
        with_weights(**{BIAS: np.ones(24, "int32")}),
        "not a float type: transformer.ln_f.bias is int32",
    ),
    "NaN": (with_weights(**{BIAS: nan}), "not finite: transformer.ln_f.bias holds NaN or infinity"),
    "wrong model type": (
        with_config(model_type="llama"),
        "config.json: model_type is 'llama'; expected",
    ),
    "quantized weights, whose package may be missing": (
        with_config(quantization_config={"quant_method": "gptq", "bits": 4}),
        "config.json: quantization_config: the weights are quantized; give the model before that",
    ),
    "a block that is not there": (
        with_config(layer_schedule=[0, 1, 2]),
        "missing: transformer.h.2.ln_1.weight (24,)",
    ),
    "a schedule with a gap": (
        with_config(layer_schedule=[0, 2, 2]),
        "config.json: layer_schedule must use",
    ),
    "tokenizer larger than the model": (with_large_tokenizer, "tokens, the model only 97"),
    "damaged tokenizer": (
        lambda directory: (directory / "tokenizer.json").write_text('{"model": '),
        "tokenizer.json: not readable as a tokenizer",
    ),
    "damaged generation_config.json": (
        lambda directory: (directory / "generation_config.json").write_text("["),
        "generation_config.json",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("command", ["to-pt", "to-tf", "to-gpt2"])
def test_nothing_is_written_from_wrong_input(name, command, capsys, tmp_path):
    damage, message = DAMAGES[name]
    directory = save_checkpoint(tmp_path / "checkpoint")
    damage(directory)
    before = contents(tmp_path)
    code, _, err = run(capsys, main_module, command, directory, "--output", tmp_path / "out")
    assert code == 2 and message in err
    # One line; transformers may have warned of the configuration before it.
    (line,) = [line for line in err.splitlines() if line.startswith("python -m convert: error: ")]
    assert err.rstrip().endswith(line) and "Traceback" not in err
    assert contents(tmp_path) == before and sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


@pytest.mark.parametrize("name", [name for name in DAMAGES if "token" not in name and "generation" not in name])
@pytest.mark.parametrize("command", ["in place", "verify"])
def test_nothing_is_changed_by_wrong_input(name, command, capsys, tmp_path):
    damage, message = DAMAGES[name]
    directory = save_checkpoint(tmp_path / "checkpoint")
    damage(directory)
    before = contents(tmp_path)
    in_place = "tf2pt" if (directory / "model.weights.h5").exists() else "pt2tf"
    code, _, err = run(capsys, main_module, in_place if command == "in place" else command, directory)
    assert code == 2 and message in err and "Traceback" not in err
    assert contents(tmp_path) == before and sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


@pytest.mark.parametrize("name", [name for name in DAMAGES if name not in ("NaN", "damaged generation_config.json")])
def test_inspect_tells_what_is_wrong(name, capsys, tmp_path):
    damage, message = DAMAGES[name]
    directory = save_checkpoint(tmp_path / "checkpoint")
    damage(directory)
    code, out, err = run(capsys, main_module, "inspect", directory)
    # A configuration that cannot be read is wrong input; weights that are wrong are what was looked for.
    assert code in (1, 2) and message in (out if code == 1 else err) and "Traceback" not in err
    assert not (tmp_path / "ran").exists()


class TestOutput:
    def test_is_there_already(self, capsys, tmp_path):
        directory = save_checkpoint(tmp_path / "checkpoint")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "model.safetensors").write_text("precious")
        for command in ("to-pt", "to-tf", "to-gpt2", "pt2tf"):
            code, _, err = run(capsys, main_module, command, directory, "--output", tmp_path / "out")
            assert code == 2 and "holds model.safetensors already; give --force" in err
            code, _, err = run(capsys, main_module, command, directory, "--output", tmp_path / "out", "--force")
            assert code == 2 and "holds no checkpoint to replace" in err
        assert (tmp_path / "out" / "model.safetensors").read_text() == "precious"

    def test_leaves_nothing_of_a_checkpoint_that_it_replaces(self, text_tokenizer, capsys, tmp_path):
        config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=0)
        old = save_checkpoint(tmp_path / "old", config, tokenizer=text_tokenizer)
        target = tmp_path / "out"
        assert run(capsys, main_module, "to-gpt2", old, "--output", target, "--keras-hub", "--no-verify")[0] == 0
        for name in ("model.safetensors", "pytorch_model-00001-of-00002.bin", "README.md", "thesis.txt"):
            (target / name).write_text("old")
        (target / "assets" / "logo.svg").write_text("precious")
        new = save_checkpoint(tmp_path / "new")
        assert run(capsys, main_module, "to-tf", new, "--output", target, "--force", "--no-verify")[0] == 0
        assert sorted(path.name for path in target.rglob("*") if path.is_file()) == [
            *("config.json", "configuration_algpt2.py", "generation_config.json", "logo.svg", "model.weights.h5"),
            *("modeling_algpt2.py", "thesis.txt"),
        ]
        assert run(capsys, main_module, "inspect", target)[0] == 0

    def test_is_in_the_source_or_around_it(self, capsys, tmp_path):
        directory = save_checkpoint(tmp_path / "deep" / "checkpoint")
        before = contents(tmp_path)
        for output in (directory / "out", tmp_path / "deep", tmp_path):
            code, _, err = run(capsys, main_module, "to-tf", directory, "--output", output, "--force")
            assert code == 2 and "the source" in err and "contain one another" in err
        assert contents(tmp_path) == before

    def test_is_the_source(self, capsys, tmp_path, monkeypatch):
        directory = save_checkpoint(tmp_path / "checkpoint")
        before = contents(directory)
        monkeypatch.chdir(tmp_path)
        (tmp_path / "link").symlink_to("checkpoint")
        for output in (directory, "checkpoint", "link", "checkpoint/../checkpoint"):
            for command in ("to-pt", "to-gpt2"):
                code, _, err = run(capsys, main_module, command, directory, "--output", output, "--force")
                assert code == 2 and "is the source as well as the target" in err
        assert contents(directory) == before

    def test_another_system_is_not_added_to(self, capsys, tmp_path):
        import transformers

        config = transformers.GPT2Config(n_embd=8, n_head=2, n_layer=2, vocab_size=50, n_positions=9, eos_token_id=0)
        transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
        code, _, err = run(capsys, main_module, "pt2tf", tmp_path / "gpt2")
        assert code == 2 and "holds a checkpoint of GPT-2 (transformers); give an --output of its own" in err

    @pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a file system that cannot be written")
    @pytest.mark.parametrize("command", ["to-pt", "to-tf", "to-gpt2"])
    def test_cannot_be_written(self, command, capsys, tmp_path):
        directory = save_checkpoint(tmp_path / "checkpoint")
        code, _, err = run(capsys, main_module, command, directory, "--output", "/sys/kernel/algpt2")
        assert code == 2 and "/sys/kernel/algpt2: cannot be written" in err and "Traceback" not in err

    @pytest.mark.slow
    @pytest.mark.parametrize("command", ["to-pt", "to-tf", "to-gpt2"])
    def test_on_a_full_disk(self, command, tmp_path):
        directory = save_checkpoint(tmp_path / "checkpoint")
        before = contents(tmp_path)
        process = subprocess.run(
            [sys.executable, "-m", "convert", command, directory, "--output", tmp_path / "out", "--no-verify"],
            # As on a full disk, no file may grow beyond this.
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 2 and "out: cannot be written" in process.stderr, process.stderr
        assert "Traceback" not in process.stderr
        assert contents(tmp_path) == before and sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


@pytest.mark.parametrize("size", ["0", "-5", "many", "5XB"])
def test_shard_sizes_that_are_none(size, capsys, tmp_path):
    directory = save_checkpoint(tmp_path / "checkpoint")
    code, _, err = run(
        capsys, main_module, "to-pt", directory, "--output", tmp_path / "out", f"--max-shard-size={size}"
    )
    assert code == 2 and "--max-shard-size" in err and not (tmp_path / "out").exists()


def test_a_directory_that_is_not_there(capsys, tmp_path):
    for command in ("inspect", "verify", "pt2tf", "tf2pt"):
        code, _, err = run(capsys, main_module, command, tmp_path / "nothing")
        assert code == 2 and "nothing: no such" in err and "Traceback" not in err
    shutil.rmtree(tmp_path)
