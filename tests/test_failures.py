"""What happens to a run that cannot go on: it says so, and keeps what it has."""

import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from command_lines import TINY_CONFIG, history
from models import read_checkpoint

import algpt2_pt.train
import algpt2_tf.train
from algpt2.data.corpus import read_corpus
from algpt2_tf import TFALGPT2LMHeadModel

pytestmark = pytest.mark.slow

TRAIN = {"pt": algpt2_pt.train, "tf": algpt2_tf.train}
ROOT = Path(__file__).parent.parent


@pytest.fixture
def arguments(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**TINY_CONFIG, "vocab_size": 300}))
    (tmp_path / "text.txt").write_text("".join(read_corpus("python-docs").train)[:8000], encoding="utf-8")
    return [
        *("--config", str(tmp_path / "config.json"), "--dataset", str(tmp_path / "text.txt"), "--batch-size", "4"),
        *("--max-steps", "40", "--eval-steps", "40", "--save-steps", "4", "--logging-steps", "2"),
        *("--output-dir", str(tmp_path / "run")),
    ]


def exit_code(module, arguments):
    with pytest.raises(SystemExit) as stopped:
        module.main(arguments)
    return stopped.value.code


def checkpoints(run):
    return sorted(int(path.name.partition("-")[2]) for path in run.glob("checkpoint-[0-9]*"))


def load(framework, directory):
    if framework == "pt":
        return read_checkpoint(directory)
    return TFALGPT2LMHeadModel.from_pretrained(directory, preprocessor=None)


@pytest.mark.parametrize("framework", TRAIN)
def test_a_loss_that_is_not_finite_stops_the_run(framework, arguments, tmp_path, capsys):
    run = tmp_path / "run"
    # Warm-up to a rate far too high: the first steps are good ones.
    diverging = ["--optimizer", "sgd", "--learning-rate", "1e3", "--warmup-steps", "40", "--max-grad-norm", "1e9"]
    assert exit_code(TRAIN[framework], [*arguments, *diverging, "--save-steps", "1", "--logging-steps", "1"]) == 1
    error = capsys.readouterr().err
    assert " is n" in error and "at step" in error and "nothing was saved after the last checkpoint" in error
    assert "Traceback" not in error
    step = int(error.partition("at step ")[2].partition(";")[0])
    assert 0 < max(checkpoints(run)) <= step
    for kept in checkpoints(run):
        load(framework, run / f"checkpoint-{kept}")
    assert not list(run.glob("model.*")) and not (run / ".partial").exists()


def limit_file_size(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


@pytest.mark.parametrize(
    ("framework", "too_large"),
    [("pt", "optimizer.pt"), ("tf", "training_state.safetensors"), ("tf", "model.weights.h5")],
)
def test_a_full_disk_leaves_the_last_checkpoint(framework, too_large, arguments, tmp_path):
    run = tmp_path / "run"
    TRAIN[framework].main([*arguments, "--max-steps", "4"])
    whole = run / "checkpoint-4"
    files = {path.name: path.read_bytes() for path in whole.iterdir()}
    for path in run.glob("model.*"):
        path.unlink()
    recorded = json.loads((run / "arguments.json").read_text())
    (run / "arguments.json").write_text(json.dumps({**recorded, "max_steps": 40}))

    process = subprocess.run(
        [sys.executable, "-m", f"algpt2_{framework}.train", "--output-dir", str(run), "--resume"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        # As on a full disk, no file may grow beyond this.
        preexec_fn=functools.partial(limit_file_size, len(files[too_large]) - 1000),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 2, process.stderr
    assert "checkpoint-8: cannot be written" in process.stderr and "checkpoint-4 is whole" in process.stderr
    assert "Traceback" not in process.stderr
    assert checkpoints(run) == [4] and not (run / ".partial").exists()
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == files


@pytest.mark.parametrize(
    ("framework", "number"), [("pt", signal.SIGINT), ("pt", signal.SIGTERM), ("tf", signal.SIGINT)]
)
def test_a_stop_request_ends_with_a_checkpoint(framework, number, arguments, tmp_path):
    run = tmp_path / "run"
    arguments = [*arguments, "--max-steps", "100000", "--save-steps", "100000", "--eval-steps", "100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", f"algpt2_{framework}.train", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while len(history(run)) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in error and "Traceback" not in error
    assert "stopping after this step" in out
    (step,) = checkpoints(run)
    load(framework, run / f"checkpoint-{step}")
    assert history(run)[-1]["step"] == step
    assert not list(run.glob("model.*"))


def test_a_resumed_run_keeps_its_arguments(arguments, tmp_path, capsys):
    run = tmp_path / "run"
    algpt2_pt.train.main([*arguments, "--max-steps", "4"])
    assert exit_code(algpt2_pt.train, ["--output-dir", str(run), "--resume", "--learning-rate", "0.5"]) == 2
    assert "--learning-rate is 0.5, but the run to resume has 0.008" in capsys.readouterr().err
    assert exit_code(algpt2_tf.train, ["--output-dir", str(run), "--resume"]) == 2
    assert "the run was made in PyTorch; resume it there" in capsys.readouterr().err
    algpt2_pt.train.main(["--output-dir", str(run), "--resume"])
    assert "the run is finished" in capsys.readouterr().out


@pytest.mark.parametrize("framework", TRAIN)
def test_no_run_to_resume_is_an_error(framework, arguments, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name, message in (("mistyped", "no run to resume"), ("empty", "is not the directory of a run")):
        assert exit_code(TRAIN[framework], [*arguments, "--output-dir", str(tmp_path / name), "--resume"]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "mistyped").exists() and not list((tmp_path / "empty").iterdir())


def test_the_best_checkpoint_is_linked_and_kept(arguments, tmp_path):
    # The learning rate is so high that the loss rises after the warm-up.
    extra = ["--save-steps", "2", "--save-total-limit", "1", "--learning-rate", "1", "--warmup-steps", "30"]
    algpt2_pt.train.main([*arguments, *extra])
    run = tmp_path / "run"
    losses = {record["step"]: record["eval_loss"] for record in history(run) if "eval_loss" in record}
    best = min(losses, key=losses.get)
    assert best < 40
    assert checkpoints(run) == [best, 40]
    assert (run / "checkpoint-best").resolve().name == f"checkpoint-{best}"
    assert np.isfinite(read_checkpoint(run / "checkpoint-best")[1]["transformer.wte.weight"]).all()


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "trainer_state.json", "scheduler.pt"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_not_resumed(arguments, tmp_path, capsys, name, damage):
    run = tmp_path / "run"
    algpt2_pt.train.main([*arguments, "--max-steps", "4"])
    (run / "model.safetensors").unlink()
    path = run / "checkpoint-4" / name
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert exit_code(algpt2_pt.train, ["--output-dir", str(run), "--resume"]) == 2
    error = capsys.readouterr().err
    assert "checkpoint-4: damaged" in error and "--resume goes on from the newest of the others" in error


def test_another_text_is_not_resumed(arguments, tmp_path, capsys):
    algpt2_pt.train.main([*arguments, "--max-steps", "4"])
    (tmp_path / "run" / "model.safetensors").unlink()
    with (tmp_path / "text.txt").open("a") as file:
        file.write("One line more.\n")
    assert exit_code(algpt2_pt.train, ["--output-dir", str(tmp_path / "run"), "--resume"]) == 2
    assert "is not what it was when the run began" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--init-from", "run"], "holds what --init-from reads"),
        (["--init-from", "run/checkpoint-4"], "holds what --init-from reads"),
        (["--tokenizer", "run"], "holds what --tokenizer reads"),
        (["--init-from", "damaged"], "damaged"),
        (["--init-from", "other-shape"], "do not fit the configuration"),
        (["--push-to-hub", "no//name"], "not the name of a repository"),
    ],
)
def test_a_run_is_not_replaced_by_one_that_cannot_start(arguments, tmp_path, capsys, monkeypatch, extra, message):
    monkeypatch.chdir(tmp_path)
    algpt2_pt.train.main([*arguments, "--max-steps", "4"])
    for name in ("damaged", "other-shape"):
        shutil.copytree("run", name)
    Path("damaged/model.safetensors").write_bytes(b"no tensors")
    config = json.loads(Path("other-shape/config.json").read_text())
    Path("other-shape/config.json").write_text(json.dumps({**config, "n_embd": 24}))
    before = {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()}
    # A run that starts from a checkpoint has its configuration.
    base = arguments[2:] if "--init-from" in extra else arguments
    assert exit_code(algpt2_pt.train, [*base, *extra, "--output-dir", "run", "--overwrite"]) == 2
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("run").rglob("*") if path.is_file()} == before
