"""Two real processes train as one does on the same batches, and notice when the other dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_lines import TINY_CONFIG, history, stored_weights
from models import save_checkpoint, tiny_config
from transformers import TrainingArguments

import algpt2_pt.train
import algpt2_tf.train
from algpt2.data.corpus import read_corpus
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_pt.training import RunCallback, RunTrainer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
CONFIG = {**TINY_CONFIG, "vocab_size": 300, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
LAUNCHERS = ("ddp", "fsdp", "accelerate", "multiworker")


def free_port():
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def start(launcher, arguments):
    """The processes of a run over two workers; `torchrun` and `accelerate launch` start theirs themselves."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "start_new_session": True}
    if launcher == "multiworker":
        workers = [f"localhost:{free_port()}" for _ in range(2)]
        return [
            subprocess.Popen(
                [sys.executable, "-m", "algpt2_tf.train", "--strategy", "multiworker", *arguments],
                env={
                    **environment,
                    "TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": i}}),
                },
                **options,
            )
            for i in range(2)
        ]
    port = str(free_port())
    command = {
        "ddp": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", port],
        "fsdp": ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", port],
        "accelerate": [
            *("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"),
            *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", port),
        ],
    }[launcher]
    extra = ["--fsdp"] if launcher == "fsdp" else []
    return [
        subprocess.Popen(
            [sys.executable, "-m", *command, "-m", "algpt2_pt.train", "--device", "cpu", *extra, *arguments],
            env=environment,
            **options,
        )
    ]


def finish(processes, timeout=120):
    """The exit codes and the output of processes."""
    outputs = []
    try:
        for process in processes:
            outputs.append(process.communicate(timeout=timeout)[0].decode())
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return [process.returncode for process in processes], "\n".join(outputs)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    directory = tmp_path_factory.mktemp("files")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / "text.txt").write_text("".join(read_corpus("python-docs").train)[:8000], encoding="utf-8")
    return [
        *("--config", str(directory / "config.json"), "--dataset", str(directory / "text.txt"), "--batch-size", "8"),
        *("--learning-rate", "1e-3", "--config-override", "initializer_range=0.02"),
        *("--gradient-accumulation", "2", "--eval-steps", "50", "--save-steps", "2", "--save-total-limit", "2"),
        *("--sop", "--max-grad-norm", "0.1"),
    ]


@pytest.fixture(scope="module")
def one_process(arguments, tmp_path_factory):
    directory = tmp_path_factory.mktemp("one")
    for framework, module in (("pt", algpt2_pt.train), ("tf", algpt2_tf.train)):
        module.main([*arguments, "--max-steps", "6", "--output-dir", str(directory / framework)])
    return directory


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train_as_one(one_process, arguments, launcher, tmp_path):
    codes, output = finish(start(launcher, [*arguments, "--max-steps", "6", "--output-dir", str(tmp_path / "run")]))
    assert not any(codes), output
    found = stored_weights(tmp_path / "run")
    expected = stored_weights(one_process / ("tf" if launcher == "multiworker" else "pt"))
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=2e-6, err_msg=name)
    # Only one process writes and reports.
    assert output.count("step 6/6  train_loss") == 1
    assert [record["step"] for record in history(tmp_path / "run")] == [2, 2, 4, 4, 6, 6]


def test_two_processes_learn_from_a_teacher_as_one(arguments, text_tokenizer, tmp_path):
    teacher = tiny_config(vocab_size=len(text_tokenizer), n_positions=20)
    save_checkpoint(tmp_path / "teacher", teacher, tokenizer=text_tokenizer)
    # Lines: the processes hold different numbers of tokens that count.
    arguments = [argument for argument in arguments if argument != "--sop"]
    arguments += ["--max-steps", "4", "--logging-steps", "2", "--packing", "line"]
    arguments += ["--teacher", str(tmp_path / "teacher")]
    algpt2_pt.train.main([*arguments, "--output-dir", str(tmp_path / "one")])
    codes, output = finish(start("ddp", [*arguments, "--output-dir", str(tmp_path / "two")]))
    assert not any(codes), output
    expected, found = stored_weights(tmp_path / "one"), stored_weights(tmp_path / "two")
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, atol=2e-6, err_msg=name)
    for name in ("train_loss", "lm_loss", "distill_loss", "teacher_perplexity"):
        values = [[record[name] for record in history(tmp_path / run) if name in record] for run in ("one", "two")]
        assert values[0]
        np.testing.assert_allclose(values[1], values[0], rtol=1e-5, err_msg=name)


def test_shards_are_rounded_to_4_bits_as_whole_matrices_are(arguments, tmp_path):
    # An evaluation gathers matrices, which the next step has to round as shards again.
    arguments = [*arguments, "--quantize", "q4", "--max-steps", "4", "--eval-steps", "2"]
    algpt2_pt.train.main([*arguments, "--output-dir", str(tmp_path / "one")])
    codes, output = finish(start("fsdp", [*arguments, "--output-dir", str(tmp_path / "two")]))
    assert not any(codes), output
    for directory in ("checkpoint-4", "."):
        found = stored_weights(tmp_path / "two" / directory)
        for name, array in stored_weights(tmp_path / "one" / directory).items():
            np.testing.assert_allclose(found[name], array, atol=2e-6, err_msg=name)


def test_a_process_that_is_not_the_first_writes_nothing(text_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "should_save", False)
    trainer = RunTrainer(
        run=SimpleNamespace(directory=tmp_path),
        history=None,
        model=ALGPT2LMHeadModel(tiny_config()),
        args=TrainingArguments(tmp_path, use_cpu=True, report_to=[]),
        processing_class=text_tokenizer,
    )
    trainer.save_model(tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


def test_all_processes_end_when_one_sees_no_progress():
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=2, check_trigger=lambda: True),
        history=SimpleNamespace(has_stopped_improving=lambda: False),
        run=SimpleNamespace(arguments=SimpleNamespace(save_steps=2)),
    )
    control = SimpleNamespace()
    RunCallback(trainer, stop_request=None).on_evaluate(None, None, control)
    assert control.should_training_stop and control.should_save


def worker_to_kill(launcher, processes):
    if launcher == "multiworker":
        return processes[1].pid
    children = subprocess.run(["pgrep", "-P", str(processes[0].pid)], capture_output=True, text=True).stdout.split()
    return int(children[-1])


@pytest.mark.parametrize("launcher", ("ddp", "fsdp", "multiworker"))
def test_a_worker_that_dies_ends_the_run_which_can_be_resumed(arguments, launcher, tmp_path):
    run = tmp_path / "run"
    arguments = [*arguments, "--max-steps", "60", "--output-dir", str(run)]
    processes = start(launcher, arguments)
    while not (run / "checkpoint-4").exists():
        assert processes[0].poll() is None, finish(processes)
        time.sleep(0.01)
    os.kill(worker_to_kill(launcher, processes), signal.SIGKILL)
    codes, output = finish(processes)
    assert codes[0] not in (0, None), output
    if launcher == "multiworker":
        assert "another worker is gone" in output and "--resume" in output
        assert "Traceback" not in output

    reached = max(int(path.name.partition("-")[2]) for path in run.glob("checkpoint-[0-9]*"))
    codes, output = finish(start(launcher, ["--output-dir", str(run), "--resume"]))
    assert not any(codes), output
    assert f"from step {reached} on" in output
    assert (run / "checkpoint-60").exists()
