"""A run that was killed, wherever, goes on to the numbers of one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_lines import TINY_CONFIG, WEIGHTS_FILES, history, stored_weights

import algpt2_pt.train
import algpt2_tf.train
from algpt2.data.corpus import read_corpus

pytestmark = pytest.mark.slow

TRAIN = {"pt": algpt2_pt.train, "tf": algpt2_tf.train}
STATE = {"pt": "optimizer.pt", "tf": "training_state.safetensors"}
# Dropout, so that the random state counts.
CONFIG = {**TINY_CONFIG, "vocab_size": 300, "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}


# What is seen of the run from outside at the moment of the kill.
MOMENTS = {
    "before the first checkpoint": lambda run, state: len(history(run)) >= 1,
    "as a checkpoint begins": lambda run, state: (run / ".partial").exists(),
    "between weights and training state": lambda run, state: list(run.glob(".partial/*/model*")),
    "with a second checkpoint half written": lambda run, state: (
        (run / "checkpoint-3").exists() and (run / ".partial").exists()
    ),
    "when a checkpoint has its name": lambda run, state: (run / "checkpoint-6").exists(),
    "after the training state": lambda run, state: (run / ".partial" / "checkpoint-9" / state).exists(),
    "after the last checkpoint": lambda run, state: (run / "checkpoint-24").exists(),
}


def arguments(directory, config):
    return [
        *("--config", str(config), "--output-dir", str(directory), "--max-steps", "24", "--batch-size", "4"),
        *("--dataset", str(config.parent / "text.txt")),
        *("--save-steps", "3", "--save-total-limit", "2", "--eval-steps", "12", "--logging-steps", "2"),
    ]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(CONFIG))
    (path.parent / "text.txt").write_text("".join(read_corpus("python-docs").train)[:8000], encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=["pt", "tf"])
def uninterrupted(request, config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("uninterrupted") / "run"
    TRAIN[request.param].main(arguments(directory, config))
    return request.param, directory


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_goes_on_to_the_same_numbers(uninterrupted, config, moment, tmp_path):
    framework, expected = uninterrupted
    directory = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-m", f"algpt2_{framework}.train", *arguments(directory, config)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while process.poll() is None and not MOMENTS[moment](directory, STATE[framework]):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    error = process.communicate()[1].decode()
    assert process.returncode == -signal.SIGKILL, error
    assert not (directory / WEIGHTS_FILES[framework]).exists()

    TRAIN[framework].main(["--output-dir", str(directory), "--resume"])
    found, wanted = stored_weights(directory), stored_weights(expected)
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)

    def numbers(run):
        return [{k: v for k, v in r.items() if k not in ("tokens_per_second", "flops_share")} for r in history(run)]

    assert numbers(directory) == numbers(expected)
    assert not list(directory.glob(".*"))
