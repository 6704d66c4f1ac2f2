"""`train --task classify`: the same numbers in both frameworks, measures, resumption and errors."""

import argparse
import csv
import json
import shutil

import numpy as np
import pytest
import torch
from command_lines import FRAMEWORKS, WEIGHTS_FILES, history, run, stored_weights
from models import classifier_weights, random_weights, save_checkpoint, tiny_config
from transformers import pipeline

from algpt2.data.labelled_texts import LabelledTexts
from algpt2.evaluation.classes import measure_classes
from algpt2.training.classification import evaluate_classes
from algpt2_pt import ALGPT2ForSequenceClassification

TRAIN = {framework: f"algpt2_{framework}.train" for framework in FRAMEWORKS}
WORDS = {"good": ["value", "object", "method"], "bad": ["type", "name", "string"], "neutral": ["of", "in", "to"]}
NAMES = {0: "bad", 1: "good", 2: "neutral"}


def rows(count, seed=0):
    draw = np.random.default_rng(seed)
    for _ in range(count):
        label = draw.choice(sorted(WORDS))
        yield " ".join(draw.choice(WORDS[label], size=draw.integers(2, 9))), str(label)


@pytest.fixture(scope="module")
def data(text_tokenizer, tmp_path_factory):
    """A folder with a language model, a classifier, and labelled texts as CSV and as JSON lines."""
    folder = tmp_path_factory.mktemp("data")
    config = tiny_config(vocab_size=600, eos_token_id=0, bos_token_id=0)
    save_checkpoint(folder / "lm", config, random_weights(config, "float32"), text_tokenizer)
    config = tiny_config(vocab_size=600, eos_token_id=0, bos_token_id=0, id2label=NAMES)
    save_checkpoint(folder / "classifier", config, classifier_weights(config, "float32"), text_tokenizer)
    with (folder / "train.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("sentence", "class"), *rows(60)])
    lines = [json.dumps({"sentence": text, "class": label}) for text, label in rows(20, seed=1)]
    (folder / "valid.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def arguments(data, output, *more, source="lm"):
    return [
        *("--task", "classify", "--init-from", data / source, "--dataset", data / "train.csv"),
        *("--text-column", "sentence", "--label-column", "class", "--output-dir", output),
        *("--batch-size", 8, "--max-steps", 6, "--eval-steps", 3, "--logging-steps", 1, "--seed", 3, *more),
    ]


@pytest.mark.slow
def test_both_frameworks_train_to_the_same_numbers(data, capsys, tmp_path):
    records = {}
    for framework in FRAMEWORKS:
        more = ("--validation", data / "valid.jsonl", "--gradient-accumulation", 2)
        code, _, err = run(capsys, TRAIN[framework], *arguments(data, tmp_path / framework, *more, source="classifier"))
        assert code == 0, err
        records[framework] = history(tmp_path / framework)
        config = json.loads((tmp_path / framework / "config.json").read_text())
        assert config["architectures"] == ["ALGPT2ForSequenceClassification"]
        assert config["id2label"] == {"0": "bad", "1": "good", "2": "neutral"}
        assert "text-classification" in (tmp_path / framework / "README.md").read_text()
    for ours, theirs in zip(*records.values(), strict=True):
        measured = {"step", "train_loss", "eval_loss", "eval_accuracy", "eval_f1"} & ours.keys()
        assert len(measured) > 1 and "eval_perplexity" not in ours
        assert {key: ours[key] for key in measured} == pytest.approx({key: theirs[key] for key in measured}, rel=1e-4)
    last = records["pt"][-1]
    # The run directory is a pipeline of transformers, whose answers have the accuracy that was recorded.
    texts, labels = zip(*rows(20, seed=1), strict=True)
    answers = [answer["label"] for answer in pipeline("text-classification", str(tmp_path / "pt"))(list(texts))]
    assert np.mean([a == b for a, b in zip(answers, labels, strict=True)]) == pytest.approx(last["eval_accuracy"])


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_language_model_is_fine_tuned_and_the_run_resumed(framework, data, capsys, tmp_path):
    more = ("--save-steps", 20, "--learning-rate", 1e-2, "--max-steps", 40, "--eval-steps", 40)
    code, out, err = run(capsys, TRAIN[framework], *arguments(data, tmp_path / "run", *more))
    assert code == 0, err
    records, expected = history(tmp_path / "run"), stored_weights(tmp_path / "run")
    # Without another file each twentieth row is held out.
    assert "57 blocks" in out and records[-1]["eval_accuracy"] in [n / 3 for n in range(4)]
    losses = [record["train_loss"] for record in records if "train_loss" in record]
    assert len(losses) == 40 and np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    command = {"pt": "pt2tf", "tf": "tf2pt"}[framework]
    carried = (command, tmp_path / "run", "--training-state", "--output", tmp_path / "carried")
    code, _, err = run(capsys, "convert.__main__", *carried)
    assert code == 2 and "was trained with --task classify; resume it in its own framework" in err
    (tmp_path / "run" / WEIGHTS_FILES[framework]).unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-40")
    code, out, err = run(capsys, TRAIN[framework], "--output-dir", tmp_path / "run", "--resume")
    assert code == 0 and "from step 20 on" in out, err
    found = stored_weights(tmp_path / "run")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6, err_msg=name)


def test_as_many_texts_are_evaluated_at_once_as_asked_for():
    texts = LabelledTexts([[1, 2]] * 5, np.zeros(5, int), 4, 0)
    sizes = []
    for size in (None, 3):
        run = argparse.Namespace(validation=texts, arguments=argparse.Namespace(batch_size=2, eval_batch_size=size))
        evaluate_classes(run, lambda ids, mask: sizes.append(len(ids)) or np.zeros((len(ids), 2)))
    assert sizes == [2, 2, 2, 3, 3]


def test_the_measures_are_those_of_their_definitions():
    draw = np.random.default_rng(0)
    logits, classes = draw.normal(size=(200, 4)), draw.integers(3, size=200)
    found = measure_classes(logits, classes)
    expected = torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(classes))
    assert found.loss == pytest.approx(expected.item(), rel=1e-12)
    metrics = pytest.importorskip("sklearn.metrics")
    predicted = logits.argmax(-1)
    assert found.accuracy == pytest.approx(metrics.accuracy_score(classes, predicted))
    assert found.f1 == pytest.approx(metrics.f1_score(classes, predicted, average="macro"))


WRONG = {
    "text column": (None, ["--text-column", "words"], "line 2: no column 'words'; give --text-column, one of sentence"),
    "label column": (None, ["--label-column", "mood"], "line 2: no column 'mood'; give --label-column, one of sent"),
    "unseen label": ('{"sentence": "of", "class": "new"}', [], "line 1: no text to train on has the label 'new'"),
    "empty text": ('{"sentence": " ", "class": "good"}', [], "line 1: the text is empty; leave the row out"),
    "no label": ('{"sentence": "of", "class": null}', [], "line 1: column 'class' holds NoneType"),
    "not JSON": ('{"sentence": "of"', [], "line 1: not JSON"),
    "of language models": (None, ["--sop"], "--sop is for language models; leave it out with --task classify"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_are_one_line(case, data, capsys, tmp_path):
    content, more, message = WRONG[case]
    if content:
        (tmp_path / "valid.jsonl").write_text(content + "\n")
        more = ["--validation", tmp_path / "valid.jsonl"]
    for framework in FRAMEWORKS:
        code, _, err = run(capsys, TRAIN[framework], *arguments(data, tmp_path / "run", *more))
        assert code == 2 and message in err and len(err.splitlines()) == 1, err
        assert not (tmp_path / "run").exists()


def test_a_checkpoint_and_two_labels_are_needed(data, capsys, tmp_path):
    code, _, err = run(capsys, TRAIN["pt"], "--task", "classify", "--dataset", data / "train.csv")
    assert code == 2 and "--task classify fine-tunes a checkpoint; name it by --init-from" in err
    (tmp_path / "one.csv").write_text("sentence,class\n" + "of,good\n" * 40)
    code, _, err = run(capsys, TRAIN["pt"], *arguments(data, tmp_path / "run", "--dataset", tmp_path / "one.csv"))
    assert code == 2 and "have the label 'good'; expected at least two labels" in err
    for row, count in (("film, a good one,pos", 3), ("a film", 1)):
        (tmp_path / "two.csv").write_text("sentence,class\nof,good\nfor,bad\n" + f"{row}\n" * 40)
        code, _, err = run(capsys, TRAIN["pt"], *arguments(data, tmp_path / "run", "--dataset", tmp_path / "two.csv"))
        assert code == 2 and f"two.csv, line 4: has {count} values, the header names 2; put a text" in err


@pytest.mark.slow
def test_losses_of_an_accumulated_batch_are_those_of_the_whole():
    # transformers' Trainer leaves the mean over parts to models that take the number of items.
    assert ALGPT2ForSequenceClassification.accepts_loss_kwargs is False
