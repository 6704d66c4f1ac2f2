"""Damage to a run's files: resuming says what it is in one line, and changes nothing."""

import argparse
import json
import os
import shutil

import numpy as np
import pytest
import torch
from command_lines import TINY_CONFIG, WEIGHTS_FILES, run
from safetensors.numpy import load_file, save_file
from transformers.trainer_pt_utils import safe_globals

import algpt2_pt.train
import algpt2_tf.train
from algpt2.data.corpus import read_corpus
from algpt2.errors import InputError
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_pt.training_state import read_training_state

TRAIN = {"pt": algpt2_pt.train, "tf": algpt2_tf.train}
STATE = {"pt": "optimizer.pt", "tf": "training_state.safetensors"}


@pytest.fixture(scope="module", params=TRAIN)
def unfinished(request, tmp_path_factory):
    """The framework and the directory of a run that was cut off after its last checkpoint."""
    directory = tmp_path_factory.mktemp("unfinished")
    (directory / "config.json").write_text(json.dumps({**TINY_CONFIG, "vocab_size": 300, "resid_pdrop": 0.1}))
    (directory / "text.txt").write_text("".join(read_corpus("python-docs").train)[:8000], encoding="utf-8")
    arguments = ("--config", directory / "config.json", "--dataset", directory / "text.txt", "--batch-size", 4)
    every = ("--max-steps", 4, "--save-steps", 4, "--eval-steps", 4, "--logging-steps", 2)
    TRAIN[request.param].main([str(argument) for argument in (*arguments, *every, "--output-dir", directory / "run")])
    (directory / "run" / WEIGHTS_FILES[request.param]).unlink()
    return request.param, directory / "run"


@pytest.fixture
def resumed(unfinished, capsys, tmp_path):
    """A function from a function that damages a copy of the run to the message of `--resume`."""
    framework, whole = unfinished

    def resume(damage):
        directory = tmp_path / "run"
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(whole, directory, symlinks=True)
        damage(directory)
        before = {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}
        code, _, err = run(capsys, TRAIN[framework], "--output-dir", directory, "--resume")
        errors = [line for line in err.splitlines() if "error: " in line]
        assert code == 2 and len(errors) == 1 and "Traceback" not in err, err
        assert {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()} == before
        return errors[0]

    return resume


def flipped(path, place=0.5):
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
def test_every_file_of_a_checkpoint_has_a_checksum(unfinished, resumed):
    _, whole = unfinished
    names = {path.name for path in (whole / "checkpoint-4").iterdir()} - {"checksums.json"}
    assert {STATE[unfinished[0]], WEIGHTS_FILES[unfinished[0]], "config.json", "tokenizer.json"} <= names
    for name in sorted(names):
        message = resumed(lambda directory, name=name: flipped(directory / "checkpoint-4" / name))
        assert f"checkpoint-4: damaged ({name} is not as it was written: its checksum differs); remove it" in message
        message = resumed(lambda directory, name=name: (directory / "checkpoint-4" / name).unlink())
        assert f"checkpoint-4: damaged ({name} is gone); remove it" in message
    message = resumed(lambda directory: (directory / "checkpoint-4" / "checksums.json").write_text('{"a": 1}'))
    assert "checkpoint-4: damaged (a is gone)" in message
    message = resumed(lambda directory: flipped(directory / "checkpoint-4" / "checksums.json", 0))
    assert "checkpoint-4: damaged" in message and "checksums.json: not readable as JSON" in message


def without_checksums(change, name):
    """What changes the content of a file in a checkpoint of a version that wrote no checksums."""

    def damage(directory):
        checkpoint = directory / "checkpoint-4"
        (checkpoint / "checksums.json").unlink()
        path = checkpoint / name
        if change is flipped:
            change(path)
        elif path.suffix == ".json":
            stored = json.loads(path.read_text())
            path.write_text(json.dumps({**stored, **change}))
        elif path.suffix == ".safetensors":
            tensors = load_file(path)
            change(tensors)
            save_file(tensors, path)
        else:
            with safe_globals():
                stored = torch.load(path, weights_only=True)
            change(stored)
            torch.save(stored, path)

    return damage


def moment(name, value):
    """Sets the first value of a moment, by the end of its name, in either framework."""

    def change(stored):
        if "state" in stored:
            stored["state"][0][name].view(-1)[0] = value
        else:
            stored[next(key for key in stored if key.endswith(f".{name}"))].flat[0] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moment("exp_avg", np.nan), "exp_avg holds NaN or infinity"),
        (moment("exp_avg_sq", np.inf), "exp_avg_sq holds NaN or infinity"),
        (moment("exp_avg_sq", -1e-9), "exp_avg_sq is negative, which no mean of squares is"),
    ],
)
def test_moments_that_no_training_comes_to(unfinished, resumed, change, message):
    assert message in resumed(without_checksums(change, STATE[unfinished[0]]))


@pytest.mark.parametrize("unfinished", ["pt"], indirect=True)
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("optimizer.pt", flipped, "the checksum of"),
        ("scheduler.pt", lambda state: state.update(last_epoch="4"), "scheduler.pt holds something else ("),
        ("scheduler.pt", lambda state: state.update(last_epoch=-4), "-4 updates were made"),
        ("rng_state.pth", flipped, "the checksum of"),
        ("rng_state.pth", lambda state: state.update(python=None), "rng_state.pth holds something else ("),
        ("rng_state.pth", lambda state: state.pop("cpu"), "rng_state.pth holds something else ('cpu')"),
        ("trainer_state.json", {"global_step": "4"}, "trainer_state.json holds something else (global_step is '4')"),
        ("trainer_state.json", {"global_step": 3}, "holds the training state of step 3"),
        ("trainer_state.json", {"stateful_callbacks": {}}, "has no TrainerControl"),
        ("trainer_state.json", {"total_flos": [1]}, "total_flos is [1]"),
        ("trainer_state.json", {"train_batch_size": "4"}, "train_batch_size is '4'"),
        ("trainer_state.json", {"save_steps": [4]}, "save_steps is [4]"),
        ("trainer_state.json", {"unknown": 1}, "unexpected keyword argument 'unknown'"),
    ],
)
def test_state_that_trainer_would_fail_at(resumed, name, change, message):
    error = resumed(without_checksums(change, name))
    assert message in error and "checkpoint-4: damaged (" in error


def test_a_pipe_in_a_checkpoint_is_not_waited_for(unfinished, resumed):
    _, whole = unfinished
    for name in sorted({path.name for path in (whole / "checkpoint-4").iterdir()} - {"README.md"}):

        def damage(directory, name=name):
            # Of a version that wrote no checksums.
            (directory / "checkpoint-4" / "checksums.json").unlink()
            (directory / "checkpoint-4" / name).unlink(missing_ok=True)
            os.mkfifo(directory / "checkpoint-4" / name)

        message = resumed(damage)
        assert "checkpoint-4: damaged (" in message and f"{name}: is not an ordinary file" in message


@pytest.mark.parametrize("unfinished", ["pt"], indirect=True)
def test_a_loss_scale_in_a_run_that_has_none(resumed):
    def damage(directory):
        torch.save(torch.amp.GradScaler("cpu").state_dict(), directory / "checkpoint-4" / "scaler.pt")

    assert "scaler.pt holds a loss scale, which --precision fp32 has not" in resumed(damage)


@pytest.mark.parametrize("unfinished", ["pt"], indirect=True)
def test_a_loss_scale_that_no_training_comes_to(unfinished, tmp_path):
    checkpoint = shutil.copytree(unfinished[1] / "checkpoint-4", tmp_path / "checkpoint-4")
    model = ALGPT2LMHeadModel.from_pretrained(checkpoint)
    arguments = argparse.Namespace(precision="fp16", optimizer="adamw", learning_rate=1e-3, weight_decay=0.01)
    for name in ("adam_beta1", "adam_beta2", "adam_epsilon"):
        setattr(arguments, name, None)
    state = torch.amp.GradScaler("cpu").state_dict()
    torch.save(state, checkpoint / "scaler.pt")
    assert read_training_state(checkpoint, model, arguments).loss_scale == (65536.0, 0)
    for change in ({"scale": float("nan")}, {"scale": 0.0}, {"scale": "x"}, {"_growth_tracker": -1}):
        torch.save({**state, **change}, checkpoint / "scaler.pt")
        with pytest.raises(InputError, match=r"checkpoint-4: damaged \("):
            read_training_state(checkpoint, model, arguments)
    torch.save(state, checkpoint / "scaler.pt")
    content = (checkpoint / "scaler.pt").read_bytes()
    flipped(checkpoint / "scaler.pt", content.index(b"backoff_factor") / len(content))
    with pytest.raises(InputError, match=r"scaler\.pt: damaged \(the checksum of"):
        read_training_state(checkpoint, model, arguments)


@pytest.mark.parametrize("unfinished", ["tf"], indirect=True)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update(step=np.array(3)), "holds the training state of step 3"),
        (lambda state: state.update(iterations=np.array(-1)), "-1 updates were made"),
        (lambda state: state.pop(next(key for key in state if key.startswith("random_state."))), "damaged ("),
        (lambda state: state.pop(next(key for key in state if key.startswith("moment."))), "missing: "),
    ],
)
def test_state_that_keras_would_fail_at(resumed, change, message):
    assert message in resumed(without_checksums(change, STATE["tf"]))


WRONG_ARGUMENTS = {
    "batch_size": ("4", None, True, -4, 4.5, [4]),
    "learning_rate": ("fast", [1e-3], -1.0, True),
    "optimizer": ("adam", 1, None),
    "dataset": (5, ["a"], True),
    "sop": (None, 1, "no"),
    "max_steps": ("4", 0, 1e308),
    "config_override": ("n_head=2", [1]),
    "text": (1, ["a"]),
    "steps": ("4", True),
    "framework": ("jax", None, 1),
}


def test_arguments_of_wrong_types(resumed):
    for name, values in WRONG_ARGUMENTS.items():
        for value in values:

            def damage(directory, name=name, value=value):
                record = json.loads((directory / "arguments.json").read_text())
                (directory / "arguments.json").write_text(json.dumps({**record, name: value}))

            message = resumed(damage)
            assert f"arguments.json: {name} is {value!r}" in message, message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": "1", "tokens": 2}', "step is '1'; expected a number"),
        ('{"step": 1.5, "tokens": 2}', "step is 1.5; expected an integer from 0"),
        ('{"step": -1, "tokens": 2}', "step is -1; expected an integer from 0"),
        ('{"step": 1, "tokens": 2, "eval_loss": []}', "eval_loss is []; expected a number"),
        ("[" * 100_000, "line 1: not readable as JSON"),
        ("\0", "line 1: not readable as JSON"),
    ],
)
def test_a_history_with_a_wrong_line(resumed, line, message):
    def damage(directory):
        history = directory / "history.jsonl"
        history.write_text(line + "\n" + history.read_text())

    assert message in resumed(damage)
