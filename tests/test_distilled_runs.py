"""`train --teacher`: the same numbers in both frameworks, in parts, on replicas and when resumed; what is refused."""

import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
import torch
from command_lines import FRAMEWORKS, WEIGHTS_FILES, history, run, stored_weights
from models import random_weights, read_checkpoint, save_checkpoint, tiny_config
from transformers import GPT2Config, GPT2LMHeadModel

import algpt2_pt.train
from algpt2.checkpoints.config_file import read_config
from algpt2.checkpoints.weights import parameter_count
from algpt2.data.corpus import read_corpus
from algpt2.data.train_tokenizer import train_tokenizer

TRAIN = {framework: f"algpt2_{framework}.train" for framework in FRAMEWORKS}
LOSSES = ("train_loss", "lm_loss", "distill_loss", "sop_loss", "eval_loss", "teacher_perplexity")
STEPS = 10


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A text with lines of many lengths, a model to start from, and teachers: transformers' GPT-2 and unfit ones."""
    directory = tmp_path_factory.mktemp("files")
    text = "".join(read_corpus("python-docs").train)[:20000]
    (directory / "text.txt").write_text(text, encoding="utf-8")
    tokenizer = train_tokenizer([text], 300)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=300, n_positions=24, n_embd=20, n_layer=3, n_head=2, initializer_range=0.4, eos_token_id=0
    )
    GPT2LMHeadModel(config).save_pretrained(directory / "gpt2")
    tokenizer.save_pretrained(directory / "gpt2")
    model = tiny_config(vocab_size=300, n_positions=16, eos_token_id=0, bos_token_id=0)
    weights = {name: array / 3 for name, array in random_weights(model, "float32").items()}
    save_checkpoint(directory / "model", model, weights, tokenizer)
    save_checkpoint(directory / "no tokenizer", model)
    save_checkpoint(directory / "short", tiny_config(vocab_size=300, n_positions=9), tokenizer=tokenizer)
    save_checkpoint(directory / "padded", tiny_config(vocab_size=384), tokenizer=tokenizer)
    save_checkpoint(directory / "other", model, tokenizer=train_tokenizer([text[::-1]], 300))
    return directory


def arguments(files, output, *more, teacher="gpt2"):
    return [
        *("--init-from", files / "model", "--teacher", files / teacher, "--dataset", files / "text.txt"),
        *("--batch-size", 8, "--max-steps", STEPS, "--learning-rate", 3e-3, "--logging-steps", 1),
        *("--eval-steps", STEPS, "--output-dir", output, *more),
    ]


def train(capsys, framework, *arguments):
    code, _, err = run(capsys, TRAIN[framework], *arguments)
    assert code == 0, err


def losses(directory):
    """The values of the losses, by name."""
    records = history(directory)
    found = {name: [record[name] for record in records if name in record] for name in LOSSES}
    return {name: values for name, values in found.items() if values}


LINES = ("--packing", "line")
# The rows of a part, or of a replica, have different numbers of tokens that count.
VARIANTS = {
    "tf": ("tf", LINES),
    "tf, in parts and on two replicas": ("tf", (*LINES, "--gradient-accumulation", "2", "--strategy", "mirrored")),
    "pt, in parts": ("pt", (*LINES, "--gradient-accumulation", "4")),
}


@pytest.fixture(scope="module")
def expected(files, tmp_path_factory):
    """A run in PyTorch, at once and in one process."""
    directory = tmp_path_factory.mktemp("expected") / "run"
    algpt2_pt.train.main([str(argument) for argument in arguments(files, directory, *LINES)])
    return directory


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_both_frameworks_learn_the_same_in_parts_and_on_replicas(variant, expected, files, capsys, tmp_path):
    framework, more = VARIANTS[variant]
    train(capsys, framework, *arguments(files, tmp_path / "run", *more))
    wanted, found = losses(expected), losses(tmp_path / "run")
    assert len(wanted["distill_loss"]) == STEPS and len(wanted["teacher_perplexity"]) == 1
    assert wanted.keys() == found.keys()
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, err_msg=name)
    whole = 0.5 * np.array(found["lm_loss"]) + 0.5 * np.array(found["distill_loss"])
    np.testing.assert_allclose(found["train_loss"], whole, rtol=1e-5)
    assert np.mean(found["lm_loss"][-3:]) < np.mean(found["lm_loss"][:3]) - 0.01
    trained = [read_checkpoint(directory)[1] for directory in (expected, tmp_path / "run")]
    for name, array in trained[0].items():
        assert np.abs(trained[1][name] - array).max() < 1e-3 * max(np.abs(array).max(), 1), name


@pytest.mark.slow
def test_sentence_order_is_learned_beside_a_teacher(files, capsys, tmp_path):
    for framework in FRAMEWORKS:
        more = ("--sop", "--gradient-accumulation", 2, "--max-steps", 3, "--distill-weight", 0.25, "--temperature", 3)
        # The head starts new, and otherwise in each framework; it learns from its first step on.
        train(capsys, framework, *arguments(files, tmp_path / framework, *more))
        found = {name: np.array(values) for name, values in losses(tmp_path / framework).items()}
        assert len(found["sop_loss"]) == 3
        np.testing.assert_allclose(
            found["train_loss"], 0.75 * found["lm_loss"] + 0.25 * found["distill_loss"], rtol=1e-5
        )
    first = [losses(tmp_path / framework) for framework in FRAMEWORKS]
    for name in ("train_loss", "lm_loss", "distill_loss"):
        np.testing.assert_allclose(first[0][name][0], first[1][name][0], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_resumed_run_ends_bit_equal_and_wants_its_teacher(framework, files, capsys, tmp_path):
    teacher = tmp_path / "teacher"
    shutil.copytree(files / "gpt2", teacher)
    more = ("--save-steps", 5, "--dropout", 0.1)
    train(capsys, framework, *arguments(files, tmp_path / "run", *more, teacher=teacher))
    weights, records = stored_weights(tmp_path / "run"), history(tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-5"
    # The teacher is in no file of the run.
    assert stored_weights(checkpoint).keys() == weights.keys()
    assert sum(array.size for array in weights.values()) == parameter_count(read_config(checkpoint))
    (tmp_path / "run" / WEIGHTS_FILES[framework]).unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-10")
    resume = ("--output-dir", tmp_path / "run", "--resume")
    teacher.rename(tmp_path / "away")
    code, _, err = run(capsys, TRAIN[framework], *resume)
    assert code == 2 and f"--teacher {teacher}: no such directory" in err and "put it back" in err
    torch.manual_seed(1)
    GPT2LMHeadModel(GPT2Config.from_pretrained(tmp_path / "away")).save_pretrained(teacher)
    shutil.copy(tmp_path / "away" / "tokenizer.json", teacher)
    shutil.copy(tmp_path / "away" / "tokenizer_config.json", teacher)
    code, _, err = run(capsys, TRAIN[framework], *resume)
    assert code == 2 and f"--teacher {teacher}: is not what it was when the run began" in err
    code, _, err = run(capsys, TRAIN[framework], *resume, "--temperature", 3)
    assert code == 2 and "--temperature is 3.0, but the run to resume has 2.0" in err
    shutil.rmtree(teacher)
    # What counts are the values, not the file that holds them.
    code, _, err = run(capsys, "convert.__main__", "to-tf", tmp_path / "away", "--output", teacher, "--no-verify")
    assert code == 0, err
    train(capsys, framework, *resume)
    found = stored_weights(tmp_path / "run")
    for name, array in weights.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    measured = {"tokens_per_second", "flops_share"}
    assert [{k: v for k, v in record.items() if k not in measured} for record in history(tmp_path / "run")] == [
        {k: v for k, v in record.items() if k not in measured} for record in records
    ]


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_half_precision_of_the_run_or_of_the_teacher_stays_near(framework, expected, files, capsys, tmp_path):
    full, found = losses(expected), {}
    for name, more in (("both", ()), ("model", ("--teacher-precision", "fp32"))):
        more = ("--precision", "bf16", *more)
        train(capsys, framework, *arguments(files, tmp_path / name, *LINES, *more))
        found[name] = losses(tmp_path / name)
        for part in ("train_loss", "lm_loss", "distill_loss", "teacher_perplexity"):
            np.testing.assert_allclose(found[name][part], full[part], rtol=3e-2, err_msg=f"{name} {part}")
    # The teacher computes in its own precision, whatever that of the model is.
    np.testing.assert_allclose(found["model"]["teacher_perplexity"], full["teacher_perplexity"], rtol=1e-5)
    assert abs(found["both"]["teacher_perplexity"][0] / full["teacher_perplexity"][0] - 1) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_new_model_takes_the_size_and_the_tokenizer_of_its_teacher(framework, files, capsys, tmp_path):
    config = {"model_type": "algpt2", "n_positions": 100, "n_embd": 16, "n_head": 2, "n_layer": 2, "embedding_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    more = ("--config", tmp_path / "config.json", "--teacher", files / "padded", "--dataset", files / "text.txt")
    more = (
        *more,
        "--length",
        16,
        "--batch-size",
        8,
        "--max-steps",
        2,
        "--report-to",
        "tensorboard",
        "--distill-weight",
        1,
    )
    train(capsys, framework, *more, "--output-dir", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["vocab_size"] == 384
    # The positions are its own.
    assert json.loads((tmp_path / "run" / "tokenizer_config.json").read_text())["model_max_length"] == 100
    names = set()
    for path in (tmp_path / "run").rglob("events.out.tfevents*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            names |= {value.tag.removeprefix("train/") for value in event.summary.value}
    assert {"lm_loss", "distill_loss", "teacher_perplexity"} <= names
    card = (tmp_path / "run" / "README.md").read_text()
    assert "Distilled from `padded`" in card and "0 x cross-entropy + 1 x T² x KL" in card and "T = 2" in card
    measured = history(tmp_path / "run")[0]["teacher_perplexity"]
    assert f"The teacher's own perplexity on the text of the evaluation is {measured:.4f}." in card
    found = run(capsys, f"algpt2_{framework}.evaluate", files / "padded", *text_of(tmp_path / "run", files))[1]
    np.testing.assert_allclose(json.loads(found)["perplexity"], measured, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--keras-hub",)], ids=["transformers", "KerasHub"])
def test_a_model_has_nothing_to_learn_from_itself_in_another_dialect(more, files, capsys, tmp_path):
    code, _, err = run(capsys, "convert.__main__", "to-gpt2", files / "model", "--output", tmp_path / "teacher", *more)
    assert code == 0, err
    train(capsys, "pt", *arguments(files, tmp_path / "run", "--max-steps", 1, teacher=tmp_path / "teacher"))
    found = losses(tmp_path / "run")
    assert abs(found["distill_loss"][0]) < 1e-6 < found["lm_loss"][0]


def text_of(directory, files):
    """The held-out text of a run, as `evaluate` takes it."""
    text = (files / "text.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    held_out = directory.parent / "valid.txt"
    held_out.write_text("".join(text[-(len(text) // 20) :]), encoding="utf-8")
    return ("--dataset", held_out, "--length", 16, "--json")


REFUSED = {
    "gone": ("gone", (), "gone: no such directory"),
    "no tokenizer": ("no tokenizer", (), "tokenizer.json: no such file"),
    "another tokenizer": ("other", (), "other: its tokenizer is another one: id "),
    "other size": ("padded", (), "padded: has vocab_size 384, the model 300; the same is needed"),
    "too short": ("short", (), "short: has n_positions 9, the blocks 16 tokens; give --length 9 at most"),
    "weight of 0": ("gpt2", ("--distill-weight", "0"), "--distill-weight: invalid number above 0 and at most 1"),
    "weight above 1": ("gpt2", ("--distill-weight", "1.5"), "--distill-weight: invalid number above 0 and at most 1"),
    "temperature": ("gpt2", ("--temperature", "0"), "--temperature: invalid number from 0.01 to 100"),
    "precision": ("gpt2", ("--teacher-precision", "fp8"), "invalid choice: 'fp8'"),
    "vocabulary": ("gpt2", ("--vocab-size", "400"), "--vocab-size would have no effect"),
    "replaced": ("gpt2", ("--output-dir", "TEACHER", "--overwrite"), "is there already and is not a run directory"),
    "classes": ("gpt2", ("--task", "classify"), "--teacher is for language models"),
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(case, framework, files, capsys, tmp_path):
    teacher, more, message = REFUSED[case]
    more = [files / teacher if argument == "TEACHER" else argument for argument in more]
    code, _, err = run(capsys, TRAIN[framework], *arguments(files, tmp_path / "run", *more, teacher=teacher))
    assert code == 2 and message in err and err.count("\n") == 1, err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "value"), [("distill-weight", 0.5), ("temperature", 2), ("teacher-precision", "bf16")]
)
def test_arguments_of_a_teacher_without_one_are_refused(flag, value, capsys, tmp_path):
    code, _, err = run(capsys, TRAIN["pt"], f"--{flag}", value, "--output-dir", tmp_path / "run")
    assert code == 2 and f"--{flag} would have no effect: it is for --teacher" in err and err.count("\n") == 1
