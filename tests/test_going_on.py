"""Runs that go on past their end or from an earlier checkpoint, and the weights that a run ends with."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from command_lines import TINY_CONFIG, WEIGHTS_FILES, history, run, stored_weights
from huggingface_hub import ModelCard

import algpt2_pt.train
import algpt2_tf.train
from algpt2.data.corpus import read_corpus

pytestmark = pytest.mark.slow

TRAIN = {"pt": algpt2_pt.train, "tf": algpt2_tf.train}
# So high that the loss rises after the warm-up.
RISING = ("--learning-rate", "1", "--warmup-steps", "12")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("files")
    config = {**TINY_CONFIG, "vocab_size": 300, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "text.txt").write_text("".join(read_corpus("python-docs").train)[:8000], encoding="utf-8")
    return directory


@pytest.fixture(params=TRAIN)
def train(request, files, capsys, tmp_path):
    """A function from more arguments of a framework's training to its exit code, output and errors."""

    def call(*arguments, output="run", steps=8):
        if not any(str(argument).startswith("--resume") for argument in arguments):
            start = ("--config", files / "config.json", "--dataset", files / "text.txt", "--batch-size", 4)
            every = ("--logging-steps", 1, "--eval-steps", 4, "--max-steps", steps)
            arguments = (*start, *every, *arguments)
        return run(capsys, TRAIN[request.param], "--output-dir", tmp_path / output, *arguments)

    call.framework = request.param
    return call


def numbers(directory):
    left_out = ("tokens_per_second", "flops_share")
    return [{key: value for key, value in record.items() if key not in left_out} for record in history(directory)]


def assert_equal_weights(found, expected):
    found, expected = stored_weights(found), stored_weights(expected)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def checkpoints(directory):
    return sorted(int(path.name.partition("-")[2]) for path in directory.glob("checkpoint-[0-9]*"))


def evaluations(directory):
    return {record["step"]: record["eval_loss"] for record in history(directory) if "eval_loss" in record}


def test_a_run_goes_on_from_any_checkpoint_to_any_length(train, tmp_path):
    directory, whole = tmp_path / "run", tmp_path / "whole"
    constant = ("--save-steps", 4, "--warmup-steps", 2, "--lr-schedule", "constant")
    assert train(*constant, output="whole", steps=12)[0] == 0
    shutil.copytree(whole, directory, symlinks=True)
    for name in ("checkpoint-3", "checkpoint-best-of-all", tmp_path):
        code, _, err = train("--resume", name)
        assert code == 2 and "is no checkpoint of" in err and "it has checkpoint-4, checkpoint-8, checkpoint-12" in err
    assert "--resume with more than --max-steps 12 goes on" in train("--resume")[1]
    code, _, err = train("--resume", "--max-steps", 8)
    assert code == 2 and "checkpoint-12 has made 12 steps already, more than 8" in err
    assert_equal_weights(directory, whole)

    # An earlier checkpoint and fewer steps: the run ends as it was there.
    code, out, err = train("--resume", directory / "checkpoint-4", "--max-steps", 8)
    assert code == 0 and "from step 4 on" in out and "removed checkpoint-8, checkpoint-12" in out, err
    assert_equal_weights(directory, whole / "checkpoint-8")
    assert numbers(directory) == [record for record in numbers(whole) if record["step"] <= 8]
    assert checkpoints(directory) == [4, 8]
    # More steps: as if it had been that long from the start.
    code, out, err = train("--resume", "--max-steps", 12)
    assert code == 0 and "from step 8 on" in out, err
    assert_equal_weights(directory, whole)
    assert numbers(directory) == numbers(whole)
    assert checkpoints(directory) == [4, 8, 12]
    assert "the run is finished" in train("--resume")[1]


def test_a_run_ends_early_and_with_its_best_weights(train, tmp_path):
    directory = tmp_path / "run"
    weights = directory / WEIGHTS_FILES[train.framework]
    code, out, err = train(*RISING, "--load-best", "--early-stopping-patience", 2, steps=400)
    assert code == 0, err
    losses = evaluations(directory)
    ordered = list(losses.values())
    waits = [number - int(np.argmin(ordered[: number + 1])) for number in range(len(ordered))]
    best, end = min(losses, key=losses.get), max(losses)
    assert end < 400 and max(waits[:-1]) < waits[-1] == 2
    assert f"no lower evaluation loss for 2 evaluations: the run ends at step {end}" in out
    assert f"the weights are those of step {best}: the lowest evaluation loss of a checkpoint" in out
    assert checkpoints(directory) == [best, end]
    assert_equal_weights(directory, directory / f"checkpoint-{best}")
    results = {result.metric_type: result for result in ModelCard.load(directory / "README.md").data.eval_results}
    assert results["loss"].metric_value == losses[best]
    assert "the run is finished" in train("--resume")[1]
    code, _, err = train("--resume", "--max-steps", 500)
    assert code == 2 and f"--early-stopping-patience 2 ended the run at step {end}" in err and weights.exists()
    # Killed before its weights were written, it comes to the same.
    weights.unlink()
    assert train("--resume")[0] == 0
    assert evaluations(directory) == losses
    assert_equal_weights(directory, directory / f"checkpoint-{best}")


@pytest.mark.parametrize("train", ["pt"], indirect=True)
def test_the_schedule_is_that_of_the_new_length(train, tmp_path):
    assert train("--save-steps", 4, "--warmup-steps", 2, "--learning-rate", "0.01")[0] == 0
    assert train("--resume", "--max-steps", "12", "--save-steps", "1")[0] == 0
    optimizer = torch.optim.SGD([torch.zeros(1)], 0.01)
    rates = {}
    for steps in (8, 12):
        scheduler = transformers.get_scheduler("linear", optimizer, 2, steps)
        for _ in range(steps):
            rates.setdefault(steps, []).append(scheduler.get_last_lr()[0])
            scheduler.optimizer.step()
            scheduler.step()
    found = [record["learning_rate"] for record in history(tmp_path / "run") if "learning_rate" in record]
    np.testing.assert_allclose(found, rates[8] + rates[12][8:], rtol=1e-6)
    # The first step beyond the old length, whose schedule ended at 0, moves the weights.
    name, before = next(iter(stored_weights(tmp_path / "run" / "checkpoint-8").items()))
    assert (stored_weights(tmp_path / "run" / "checkpoint-9")[name] != before).any()


@pytest.mark.parametrize("train", ["pt"], indirect=True)
def test_a_run_without_checkpoints_ends_for_good_and_says_what_it_lost(train, tmp_path):
    code, out, err = train(*RISING, steps=24)
    assert code == 0, err
    losses = evaluations(tmp_path / "run")
    best = min(losses, key=losses.get)
    above = f"{losses[24] / losses[best] - 1:.1%} above the lowest, {losses[best]:.4g} at step {best}; --load-best"
    assert best < 24 and f"the last evaluation loss, {losses[24]:.4g}, is {above}" in out
    before = stored_weights(tmp_path / "run")
    code, out, _ = train("--resume")
    assert code == 0 and "--max-steps" not in out and f"--init-from {tmp_path / 'run'}" in out
    code, _, err = train("--resume", "--max-steps", 30)
    assert code == 2 and "kept no checkpoint to go on from (--save-steps); --init-from" in err
    assert all((stored_weights(tmp_path / "run")[name] == array).all() for name, array in before.items())
