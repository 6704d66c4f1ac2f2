"""Training on the command line, in both frameworks."""

import importlib
import json

import numpy as np
import pytest
import tensorflow as tf
import torch
import wandb
from command_lines import FRAMEWORKS, history, run
from transformers import AutoTokenizer

import algpt2_pt.train
from algpt2.checkpoints.checkpoint import read_config
from algpt2.data.corpus import read_corpus
from algpt2.training.preparation import prepare_run
from algpt2_pt.training import Samples
from algpt2_tf.training import batches

TEXT = "".join(list(read_corpus("python-docs").train)[:6])
CONFIG = {"model_type": "algpt2", "n_positions": 32, "n_embd": 32, "n_head": 2, "n_layer": 2, "embedding_size": 16}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A directory with a text, a held-out text and a configuration."""
    directory = tmp_path_factory.mktemp("files")
    (directory / "train.txt").write_text(TEXT[:-4000], encoding="utf-8")
    (directory / "valid.txt").write_text(TEXT[-4000:], encoding="utf-8")
    (directory / "config.json").write_text(json.dumps(CONFIG))
    return directory


def train_arguments(files, output, *extra):
    return [
        "--config", files / "config.json", "--dataset", files / "train.txt", "--validation", files / "valid.txt",
        "--vocab-size", 400, "--batch-size", 4, "--max-steps", 12, "--logging-steps", 4, "--eval-steps", 6,
        "--learning-rate", 1e-2, "--seed", 7, "--output-dir", output, *extra,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(files, tmp_path_factory):
    """A run directory of each framework, with the same arguments."""
    output = tmp_path_factory.mktemp("runs")
    for framework in FRAMEWORKS:
        extra = ["--save-steps", 6] + (["--strategy", "mirrored"] if framework == "tf" else [])
        module = importlib.import_module(f"algpt2_{framework}.train")
        module.main([str(a) for a in train_arguments(files, output / framework, *extra)])
    return output


@pytest.mark.parametrize(("framework", "weights"), [("pt", "model.safetensors"), ("tf", "model.weights.h5")])
def test_run_directory(runs, framework, weights):
    directory = runs / framework
    names = {path.name for path in directory.iterdir()}
    assert names >= {
        "config.json", "generation_config.json", weights, "tokenizer.json", "tokenizer_config.json", "history.jsonl",
        "perplexity.png", "arguments.json", "checkpoint-6",
    }  # fmt: skip
    assert (directory / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    assert (directory / "checkpoint-6" / weights).exists()
    config = read_config(directory)
    assert config.vocab_size == len(AutoTokenizer.from_pretrained(directory)) == 400
    assert config.eos_token_id == 0
    assert config.use_cache and read_config(directory / "checkpoint-6").use_cache


def test_histories_lie_side_by_side(runs):
    pt, tf = (history(runs / framework) for framework in FRAMEWORKS)
    assert [record["step"] for record in pt] == [record["step"] for record in tf] == [4, 6, 6, 8, 12, 12]
    for a, b in zip(pt, tf, strict=True):
        assert a.keys() == b.keys()
        assert a["tokens"] == b["tokens"] == a["step"] * 4 * 32
        assert np.isclose(a.get("learning_rate", 0), b.get("learning_rate", 0), rtol=1e-5)
    for records in (pt, tf):
        losses = [record["train_loss"] for record in records if "train_loss" in record]
        assert losses[-1] < losses[0]
        assert all(np.isclose(r["eval_perplexity"], np.exp(r["eval_loss"])) for r in records if "eval_loss" in r)


def test_both_frameworks_read_the_same_batches(files, tmp_path):
    arguments = [str(a) for a in train_arguments(files, tmp_path / "run", "--sop")]
    run = prepare_run(algpt2_pt.train.parser().parse_args(arguments))
    data = Samples(run)
    assert len(data) == 48
    found = list(batches(run).as_numpy_iterator())
    assert len(found) == 12
    for name in ("input_ids", "labels", "sentence_order_label"):
        expected = torch.stack([data[i][name] for i in range(48)]).numpy()
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in found]), expected)
    # Half of the blocks are as in the text, the others have their halves swapped.
    swapped = np.concatenate([batch["sentence_order_label"] for batch in found])
    assert 10 < swapped.sum() < 38
    blocks = run.blocks.rows(run.order[np.arange(48)])[0]
    blocks[swapped == 1] = np.hstack([blocks[swapped == 1, 16:], blocks[swapped == 1, :16]])
    np.testing.assert_array_equal(np.concatenate([batch["input_ids"] for batch in found]), blocks)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_evaluation_gives_the_last_loss_of_the_history(runs, files, framework, capsys):
    directory = runs / framework
    code, out, _ = run(capsys, f"algpt2_{framework}.evaluate", directory, "--dataset", files / "valid.txt", "--json")
    assert code == 0
    found = json.loads(out.splitlines()[-1])
    assert np.isclose(found["loss"], history(directory)[-1]["eval_loss"], rtol=1e-5)
    assert np.isclose(found["perplexity"], np.exp(found["loss"]), rtol=1e-9)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_same_seed_same_run(files, runs, framework, tmp_path, capsys):
    def losses(directory):
        return [record.get("train_loss", record.get("eval_loss")) for record in history(directory)]

    extra = ["--save-steps", 6, *(["--strategy", "mirrored"] if framework == "tf" else [])]
    assert run(capsys, f"algpt2_{framework}.train", *train_arguments(files, tmp_path / "again", *extra))[0] == 0
    np.testing.assert_allclose(losses(tmp_path / "again"), losses(runs / framework), rtol=1e-6)
    assert (
        run(capsys, f"algpt2_{framework}.train", *train_arguments(files, tmp_path / "other", *extra, "--seed", 8))[0]
        == 0
    )
    assert losses(tmp_path / "other")[0] != losses(tmp_path / "again")[0]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--dataset", "no/such/file.txt"], "no/such/file.txt: no such file"),
        (["--length", "33"], "--length 33 must be at least 2 and at most n_positions, 32"),
        (["--config", "no/such.json"], "no/such.json: no such file or directory"),
        (["--tokenizer", "no/such"], "no/such/tokenizer.json: no such file"),
        (["--vocab-size", "100"], "vocab_size 100 is too small"),
        (["--warmup-steps", "13"], "--warmup-steps 13 is more than the 12 steps of the run"),
        (["--batch-size", "0"], "argument --batch-size: invalid positive integer value: '0'"),
        (["--learning-rate", "nan"], "argument --learning-rate: invalid positive number value: 'nan'"),
        (["--epochs", "1"], "not allowed with argument"),
        (["--report-to", "carrier-pigeon"], "invalid choice: 'carrier-pigeon'"),
        (["--batch-size", "100000"], "--batch-size 100000 is more than the text's"),
        (["--seed", "4294967296"], "invalid seed below 2**32 value"),
        (["--output-dir", ".", "--overwrite"], ".: is the current directory or holds it"),
    ],
)
def test_wrong_arguments(files, framework, extra, message, tmp_path, capsys):
    code, _, err = run(capsys, f"algpt2_{framework}.train", *train_arguments(files, tmp_path / "run", *extra))
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_run_that_is_there_is_kept(files, framework, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    for overwrite in ([], ["--overwrite"]):
        code, _, err = run(capsys, f"algpt2_{framework}.train", *train_arguments(files, tmp_path, *overwrite))
        assert code == 2 and "is there already and is not a run directory" in err
    (tmp_path / "arguments.json").write_text("{}")
    code, _, err = run(capsys, f"algpt2_{framework}.train", *train_arguments(files, tmp_path))
    assert code == 2 and "--overwrite to replace it" in err
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    code, _, err = run(capsys, f"algpt2_{framework}.train", *train_arguments(files, tmp_path, "--overwrite"))
    assert code == 0 and not (tmp_path / "thesis.txt").exists()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_intervals_that_do_not_divide_the_steps(files, framework, tmp_path, capsys):
    arguments = train_arguments(files, tmp_path / "run", "--logging-steps", 5, "--eval-steps", 5)
    assert run(capsys, f"algpt2_{framework}.train", *arguments)[0] == 0
    records = history(tmp_path / "run")
    assert [record["step"] for record in records if "train_loss" in record] == [5, 10, 12]
    assert [record["step"] for record in records if "eval_loss" in record] == [5, 10, 12]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_diverged_run_fails_and_saves_no_weights(files, framework, tmp_path, capsys):
    arguments = train_arguments(files, tmp_path / "run", "--learning-rate", 1e30)
    code, _, err = run(capsys, f"algpt2_{framework}.train", *arguments)
    assert code == 1 and "the loss is nan at step" in err and "Traceback" not in err
    assert not list((tmp_path / "run").glob("model.*"))
    assert all(np.isfinite(value) for record in history(tmp_path / "run") for value in record.values())


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ("[]", "expected a JSON object, found list"),
        ('{"model_type": "bert"}', "model_type is 'bert'; expected algpt2 or gpt2, or a preset of KerasHub"),
        ('{"model_type": "algpt2", "n_head": 7}', "n_embd must be divisible by n_head"),
        ('{"model_type": "algpt2", "n_embd": "wide"}', "n_embd"),
    ],
)
def test_wrong_configurations(files, stored, message, tmp_path, capsys):
    (tmp_path / "config.json").write_text(stored)
    arguments = train_arguments(files, tmp_path / "run", "--config", tmp_path / "config.json")
    code, _, err = run(capsys, "algpt2_pt.train", *arguments)
    assert code == 2 and message in err
    assert not (tmp_path / "run").exists()


def test_unknown_fields_of_a_configuration_are_told(files, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "n_heads": 8}))
    arguments = train_arguments(files, tmp_path / "run", "--config", tmp_path / "config.json")
    assert "not used: n_heads" in run(capsys, "algpt2_pt.train", *arguments)[1]


def test_wandb_without_a_login(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    code, _, err = run(capsys, "algpt2_pt.train", *train_arguments(files, tmp_path / "run", "--report-to", "wandb"))
    # wandb reads its environment once.
    wandb.teardown()
    assert code == 2 and "wandb: not logged in" in err
    assert not (tmp_path / "run").exists()


def test_batches_must_divide_over_replicas(files, tmp_path, capsys):
    arguments = train_arguments(files, tmp_path / "run", "--strategy", "mirrored", "--batch-size", 3)
    code, _, err = run(capsys, "algpt2_tf.train", *arguments)
    assert not (tmp_path / "run").exists()
    assert code == 2 and "--batch-size 3 must be divisible by 2 devices" in err


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_reports_to_wandb_offline_and_tensorboard(files, framework, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for target in ("wandb", "tensorboard"):
        arguments = train_arguments(files, tmp_path / target, "--report-to", target)
        assert run(capsys, f"algpt2_{framework}.train", *arguments)[0] == 0
    assert list(tmp_path.rglob("offline-run-*"))
    names = set()
    for path in (tmp_path / "tensorboard").rglob("events.out.tfevents*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            names |= {value.tag for value in event.summary.value}
    assert any(name.endswith("loss") and "eval" not in name for name in names)
    assert any("eval" in name and name.endswith("perplexity") for name in names)
