"""Commands that are killed between two calls of the file system: the old is left or the new, and the next run works."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from command_lines import TINY_CONFIG, WEIGHTS_FILES, run, stored_weights
from kills import die_at_every_call
from models import read_checkpoint, save_checkpoint, tiny_config
from safetensors.numpy import load_file

import algpt2_pt.train
import algpt2_tf.train
import convert.__main__
from algpt2.data.corpus import read_corpus
from algpt2.files.atomic import require_whole

pytestmark = pytest.mark.slow

TRAIN = {"pt": algpt2_pt.train, "tf": algpt2_tf.train}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def contents(path):
    files = [path] if path.is_file() else path.rglob("*")
    found = {str(file.relative_to(path)): file.read_bytes() for file in files if file.is_file()}
    if WEIGHTS_FILES["tf"] in found:
        # HDF5 keeps the time as well.
        found[WEIGHTS_FILES["tf"]] = {name: array.tobytes() for name, array in stored_weights(path).items()}
    return found


def leftovers(directory):
    return [path for path in directory.rglob("*") if ".algpt2-" in path.name or path.name == ".partial"]


@pytest.fixture
def train(capsys, tmp_path):
    """A function that trains with a framework and more arguments, and returns the directory of the run."""
    config = {**TINY_CONFIG, "vocab_size": 300, "resid_pdrop": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "text.txt").write_text("".join(read_corpus("python-docs").train)[:4000], encoding="utf-8")
    start = ("--config", tmp_path / "config.json", "--dataset", tmp_path / "text.txt", "--batch-size", 4)
    every = ("--max-steps", 4, "--save-steps", 2, "--eval-steps", 4, "--save-total-limit", 1)

    def call(framework, name, *arguments):
        given = () if "--resume" in arguments else (*start, *every)
        code, _, err = run(capsys, TRAIN[framework], "--output-dir", tmp_path / name, *given, *arguments)
        assert code == 0, err
        return tmp_path / name

    return call


def state(run_directory):
    """The weights of a run, and those, moments and random states of its last checkpoint."""
    checkpoint = run_directory / "checkpoint-4"
    found = {
        f"{place.name}/{name}": a for place in (run_directory, checkpoint) for name, a in stored_weights(place).items()
    }
    if (checkpoint / "optimizer.pt").exists():
        moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"]
        found |= {f"{key}.{name}": tensor.numpy() for key, of in moments.items() for name, tensor in of.items()}
        return found | {"random": torch.load(checkpoint / "rng_state.pth", weights_only=False)["cpu"].numpy()}
    return found | load_file(checkpoint / "training_state.safetensors")


@pytest.mark.parametrize(("framework", "step"), [("pt", 71), ("tf", 171)])
def test_training_in_place_of_another_run(framework, step, train, tmp_path):
    expected = train(framework, "whole")
    old = shutil.copytree(expected, tmp_path / "old", symlinks=True)
    record = json.loads((old / "arguments.json").read_text())
    (old / "arguments.json").write_text(json.dumps({**record, "seed": 5}))
    target, before, ends = tmp_path / "run", contents(old), set()

    def prepare():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(old, target, symlinks=True)

    def check(died):
        is_old = json.loads((target / "arguments.json").read_text())["seed"] == 5
        # What is there is the old run, as it was, or the new one, as far as it had come.
        assert not is_old or contents(target) == before
        ends.add(is_old)
        if died:
            train(framework, "run", "--overwrite" if is_old else "--resume")
        found, whole = state(target), state(expected)
        assert found.keys() == {name.replace("whole/", "run/") for name in whole}
        for name, array in whole.items():
            np.testing.assert_array_equal(found[name.replace("whole/", "run/")], array, err_msg=name)
        settings = "checkpoint-4/tokenizer_config.json"
        assert (target / settings).read_bytes() == (expected / settings).read_bytes()
        assert not leftovers(tmp_path)

    deaths = die_at_every_call(prepare, lambda: train(framework, "run", "--overwrite"), check, step, in_child=False)
    assert deaths > 1 and ends == {True, False}


def test_a_run_that_is_carried_over(train, capsys, tmp_path):
    source = train("pt", "source")
    target = tmp_path / "target"
    arguments = ("pt2tf", source, "--training-state", "--output", target, "--no-verify")
    weights = read_checkpoint(source / "checkpoint-4")[1]

    def carry(*more):
        code, _, err = run(capsys, convert.__main__, *arguments, *more)
        assert code == 0, err

    def check(died):
        assert not target.exists() or (target / "checkpoint-4" / "training_state.safetensors").is_file()
        if died:
            carry("--force")
        found = read_checkpoint(target / "checkpoint-4", "tensorflow")[1]
        assert all((found[name] == array).all() for name, array in weights.items())
        assert not leftovers(tmp_path)
        train("tf", "target", "--resume")

    assert die_at_every_call(lambda: shutil.rmtree(target, ignore_errors=True), carry, check, 45, in_child=False) > 1


@pytest.mark.parametrize(
    ("command", "step"),
    [
        (("export", "--to", "onnx"), 5),
        (("export", "--to", "gguf"), 1),
        (("export", "--to", "web"), 9),
        (("to-pt",), 7),
        (("to-tf",), 9),
        (("to-gpt2",), 11),
    ],
)
def test_what_is_written_in_place_of_another(command, step, text_tokenizer, capsys, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), n_embd=16, n_head=2, layer_schedule=[0, 1], eos_token_id=0)
    source = save_checkpoint(tmp_path / "source", config, tokenizer=text_tokenizer)
    other = save_checkpoint(
        tmp_path / "other", tiny_config(n_embd=16, n_head=2, vocab_size=len(text_tokenizer)), tokenizer=text_tokenizer
    )
    suffix = ".gguf" if "gguf" in command else ""
    old, expected, target = (tmp_path / f"{name}{suffix}" for name in ("old", "whole", "target"))

    def write(directory=source, output=target, *more):
        name, *options = command
        code, _, err = run(
            capsys, convert.__main__, name, directory, *options, "--output", output, "--no-verify", *more
        )
        assert code == 0, err

    write(other, old)
    shutil.copytree(old, expected) if old.is_dir() else shutil.copyfile(old, expected)
    write(source, expected, "--force")
    states = [contents(old), contents(expected)]

    def prepare():
        for path in (target, *tmp_path.glob(".target*")):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        shutil.copytree(old, target) if old.is_dir() else shutil.copyfile(old, target)

    def check(died):
        if target.is_dir():
            require_whole(target)
        # The next writer removes what the killed one was writing.
        assert {name: content for name, content in contents(target).items() if ".algpt2-" not in name} in states
        write(source, target, "--force")
        assert contents(target) == states[1] and not leftovers(tmp_path)

    assert die_at_every_call(prepare, lambda: write(source, target, "--force"), check, step, in_child=False) > 2
