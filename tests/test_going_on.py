"""Runs that go on past their end or from an earlier checkpoint, and the weights that a run ends with."""

import json

import numpy as np
import pytest
import torch
import transformers
from command_lines import TINY_CONFIG, WEIGHTS_FILES, history, run, stored_weights
from huggingface_hub import ModelCard

import algpt2_pt.train
import algpt2_tf.train
from algpt2.data.corpus import read_corpus

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


def test_a_finished_run_goes_on_to_more_steps(train, tmp_path):
    constant = ("--save-steps", 4, "--warmup-steps", 2, "--lr-schedule", "constant")
    assert train(*constant)[0] == train(*constant, output="longer", steps=12)[0] == 0
    code, out, _ = train("--resume")
    assert code == 0 and "the run is finished" in out and "--resume with more than --max-steps 8 goes on" in out
    code, out, err = train("--resume", "--max-steps", "12")
    assert code == 0 and "from step 8 on" in out, err
    assert_equal_weights(tmp_path / "run", tmp_path / "longer")
    assert numbers(tmp_path / "run") == numbers(tmp_path / "longer")
    assert checkpoints(tmp_path / "run") == [4, 8, 12]
    # The record is that of the longer run, so that it is finished now.
    assert "the run is finished" in train("--resume")[1]
    code, _, err = train("--resume", "--max-steps", "6")
    assert code == 2 and "checkpoint-12 has made 12 steps already, more than 6" in err


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


def test_a_run_goes_on_from_an_earlier_checkpoint(train, tmp_path):
    directory = tmp_path / "run"
    assert train("--save-steps", 2)[0] == 0
    assert train("--save-steps", 2, output="whole")[0] == 0
    for name in ("checkpoint-3", "checkpoint-best-of-all", tmp_path):
        code, _, err = train(f"--resume={name}")
        assert code == 2 and "is no checkpoint of" in err and "it has checkpoint-2, checkpoint-4, checkpoint-6" in err
    assert_equal_weights(directory, tmp_path / "whole")
    code, out, err = train("--resume", directory / "checkpoint-4")
    assert code == 0 and "from step 4 on" in out and "removed checkpoint-6, checkpoint-8" in out, err
    assert_equal_weights(directory, tmp_path / "whole")
    assert numbers(directory) == numbers(tmp_path / "whole")
    assert checkpoints(directory) == checkpoints(tmp_path / "whole")
    best = (directory / "checkpoint-best").resolve().name
    code, out, err = train("--resume", "checkpoint-best")
    assert code == 0 and f"from step {best.partition('-')[2]} on" in out, err
    assert_equal_weights(directory, tmp_path / "whole")


def test_a_run_without_checkpoints_does_not_go_on(train, tmp_path):
    assert train(steps=2)[0] == 0
    before = (tmp_path / "run" / WEIGHTS_FILES[train.framework]).read_bytes()
    code, out, _ = train("--resume")
    assert code == 0 and "--max-steps" not in out and f"--init-from {tmp_path / 'run'}" in out
    code, _, err = train("--resume", "--max-steps", "4")
    assert code == 2 and "kept no checkpoint to go on from (--save-steps); --init-from" in err
    assert (tmp_path / "run" / WEIGHTS_FILES[train.framework]).read_bytes() == before


def test_the_best_checkpoint_is_what_a_run_ends_with(train, tmp_path):
    directory = tmp_path / "run"
    code, out, err = train(*RISING, "--load-best", "--save-total-limit", 2, steps=24)
    assert code == 0, err
    losses = evaluations(directory)
    best = min(losses, key=losses.get)
    assert best < 24 and checkpoints(directory) == [best, 20, 24]
    assert f"the weights are those of step {best}: the lowest evaluation loss of a checkpoint" in out
    assert_equal_weights(directory, directory / f"checkpoint-{best}")
    results = {result.metric_type: result for result in ModelCard.load(directory / "README.md").data.eval_results}
    assert results["loss"].metric_value == losses[best]
    # Killed before its end, it comes to the same.
    (directory / WEIGHTS_FILES[train.framework]).unlink()
    assert train("--resume")[0] == 0
    assert_equal_weights(directory, directory / f"checkpoint-{best}")

    code, out, _ = train(*RISING, output="last", steps=24)
    assert code == 0
    assert (
        f"is {losses[24] / losses[best] - 1:.1%} above the lowest, {losses[best]:.4g} at step {best}; --load-best"
        in out
    )
    assert evaluations(tmp_path / "last") == losses


def test_a_run_ends_early_when_evaluations_bring_nothing(train, tmp_path):
    directory = tmp_path / "run"
    code, out, err = train(*RISING, "--early-stopping-patience", 2, "--save-steps", 8, steps=400)
    assert code == 0, err
    losses = evaluations(directory)
    ordered = list(losses.values())
    ends = [step for number, step in enumerate(losses) if number - int(np.argmin(ordered[: number + 1])) >= 2]
    assert ends == [max(losses)] and max(losses) < 400
    assert f"no lower evaluation loss for 2 evaluations: the run ends at step {ends[0]}" in out
    assert checkpoints(directory)[-1] == ends[0] and "the run is finished" in train("--resume")[1]
    expected = stored_weights(directory / f"checkpoint-{ends[0]}")
    weights = directory / WEIGHTS_FILES[train.framework]
    # Killed before its weights were written, it does not train any further.
    weights.unlink()
    assert train("--resume")[0] == 0
    assert all((stored_weights(directory)[name] == array).all() for name, array in expected.items())
    code, _, err = train("--resume", "--max-steps", "500")
    assert code == 2 and "--early-stopping-patience 2 ended the run" in err and weights.exists()
    code, out, err = train("--resume", "--max-steps", ends[0] + 4, "--early-stopping-patience", 100)
    assert code == 0 and f"from step {ends[0]} on" in out, err
    assert max(evaluations(directory)) == ends[0] + 4
