"""Classifiers of texts compute the same in both frameworks, convert both ways and to and from transformers' GPT-2."""

import json

import numpy as np
import pytest
import tensorflow as tf
import torch
from ai_edge_litert.interpreter import Interpreter
from command_lines import run
from models import (
    classifier_weights,
    random_batch,
    random_config,
    read_checkpoint,
    relative_difference,
    save_checkpoint,
    tiny_config,
)
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

import convert.__main__ as main_module
from algpt2.checkpoints.config_file import read_config
from algpt2.errors import InputError
from algpt2_pt import ALGPT2ForSequenceClassification, ALGPT2ForTokenClassification
from algpt2_tf import TFALGPT2TextClassifier
from convert import compare_directory, pt2tf, tf2pt

NAMES = {0: "bad", 1: "neutral", 2: "good"}


def checkpoint(directory, dtype="float32", **overrides):
    overrides = {"id2label": NAMES, "layer_schedule": [0, 1, 0], "pad_token_id": 96, **overrides}
    config = tiny_config(architectures=["ALGPT2ForSequenceClassification"], **overrides)
    return save_checkpoint(directory, config, classifier_weights(config, dtype))


@pytest.mark.parametrize("seed", range(4))
def test_both_frameworks_give_the_same_logits(seed, tmp_path):
    config = random_config(seed)
    config.num_labels, config.pad_token_id = 3, 96
    save_checkpoint(tmp_path, config, classifier_weights(config))
    ids, mask = random_batch(config, seed=seed)
    for side in (mask, mask[:, ::-1]):
        padded = np.where(side, ids % 96, 96)
        expected = ALGPT2ForSequenceClassification.from_pretrained(tmp_path).eval()(
            torch.tensor(padded), attention_mask=torch.tensor(side.copy())
        )
        model = TFALGPT2TextClassifier.from_pretrained(tmp_path, dtype="float64")
        assert relative_difference(expected.logits, model({"token_ids": padded, "padding_mask": side})) < 1e-12


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_a_round_trip_keeps_the_head_and_the_names(dtype, tied, tmp_path):
    source = checkpoint(tmp_path / "source", dtype, tie_word_embeddings=tied)
    there = pt2tf(source, output=tmp_path / "tf").directory
    back = tf2pt(there, output=tmp_path / "pt").directory
    for directory in (there, back):
        stored = json.loads((directory / "config.json").read_text())
        assert stored["architectures"] == ["ALGPT2ForSequenceClassification"]
        assert stored["id2label"] == {"0": "bad", "1": "neutral", "2": "good"}
    expected, found = read_checkpoint(source)[1], read_checkpoint(back)[1]
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("pad_token_id", [96, None, 0])
def test_the_command_compares_the_logits_of_the_classes(pad_token_id, capsys, tmp_path):
    source = checkpoint(tmp_path / "pt", pad_token_id=pad_token_id)
    code, out, _ = run(capsys, main_module, "pt2tf", source)
    assert code == 0 and out.count("logit difference") == 2 and "FAILED" not in out
    code, out, _ = run(capsys, main_module, "verify", source)
    assert code == 0 and "hidden state" in out and "continuation" not in out
    code, out, _ = run(capsys, main_module, "inspect", source)
    assert code == 0 and "heads: sequence classification (3: bad, neutral, good)" in out
    assert "problems     none" in out
    weights = read_checkpoint(source)[1]
    weights["score.weight"] = weights["score.weight"] + np.float32(0.1)
    save_checkpoint(source, read_config(source), weights)
    assert not any(comparison.passed for comparison in compare_directory(source))


@pytest.fixture
def gpt2(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_positions=40, n_embd=24, n_layer=3, n_head=3, pad_token_id=96)
    config.id2label, config.label2id = NAMES, {name: index for index, name in NAMES.items()}
    model = GPT2ForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "gpt2")
    return model


def test_a_classifier_of_gpt2_becomes_one_of_both_frameworks(gpt2, capsys, tmp_path):
    ids = torch.arange(24).reshape(2, 12)
    expected = gpt2(ids).logits
    for command in ("to-pt", "to-tf"):
        target = tmp_path / command
        code, out, _ = run(capsys, main_module, command, tmp_path / "gpt2", "--output", target)
        assert code == 0 and "transformers' GPT-2" in out and "FAILED" not in out
        config = read_config(target)
        assert config.architectures == ["ALGPT2ForSequenceClassification"] and config.id2label == NAMES
    found = AutoModelForSequenceClassification.from_pretrained(tmp_path / "to-pt").eval()(ids).logits
    assert relative_difference(expected, found) < 1e-5
    model = TFALGPT2TextClassifier.from_pretrained(tmp_path / "to-tf")
    found = model({"token_ids": ids.numpy(), "padding_mask": np.ones_like(ids.numpy())})
    assert relative_difference(expected, found) < 1e-5


@pytest.mark.parametrize("seed", range(3))
def test_a_classifier_becomes_one_of_gpt2(seed, capsys, tmp_path):
    config = random_config(seed)
    config.id2label, config.pad_token_id, config.activation_function = NAMES, 96, "gelu_new"
    source = save_checkpoint(tmp_path / "algpt2", config, classifier_weights(config))
    code, out, _ = run(capsys, main_module, "to-gpt2", source, "--output", tmp_path / "gpt2")
    assert code == 0 and "FAILED" not in out
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "gpt2").eval()
    assert type(model) is GPT2ForSequenceClassification and model.config.id2label == NAMES
    ids = torch.arange(24).reshape(2, 12)
    expected = ALGPT2ForSequenceClassification.from_pretrained(source).eval()(ids).logits
    assert relative_difference(expected, model(ids).logits) < 1e-10
    code, _, err = run(capsys, main_module, "to-gpt2", source, "--output", tmp_path / "hub", "--keras-hub")
    assert code == 2 and "KerasHub's GPT-2 has no such head" in err


def served(path):
    """The function of a SavedModel or a LiteRT file, by its runtime alone."""
    if path.is_dir():
        loaded = tf.saved_model.load(str(path))
        assert list(loaded.signatures) == ["serving_default"]
        return lambda **inputs: np.asarray(loaded.signatures["serving_default"](**inputs)["logits"])
    interpreter = Interpreter(model_path=str(path))
    assert list(interpreter.get_signature_list()) == ["serving_default"]
    run_signature = interpreter.get_signature_runner("serving_default")
    return lambda **inputs: run_signature(**inputs)["logits"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("savedmodel", (), 1e-5),
        ("model.tflite", (), 1e-5),
        ("fixed.tflite", ("--length", 12), 1e-5),
        # What the command lets pass.
        ("int8.tflite", ("--quantize", "int8"), 0.1),
    ],
)
def test_an_export_gives_the_logits_of_the_classes(name, options, tolerance, capsys, tmp_path):
    source = checkpoint(tmp_path / "pt", n_embd=48)
    to, path = ("litert" if "tflite" in name else "savedmodel"), tmp_path / name
    code, out, err = run(capsys, main_module, "export", source, "--to", to, "--output", path, *options)
    assert code == 0 and out.count("logit difference") == 2 and "FAILED" not in out, err
    assert "continuation" not in out and out.count("another likeliest class") == ("--quantize" in options)
    model, serve = ALGPT2ForSequenceClassification.from_pretrained(source).eval(), served(path)
    ids, mask = random_batch(model.config)
    rows = [slice(row, row + 1) for row in range(3)] if "--length" in options else [slice(3)]
    for row in rows:
        # The classifier of PyTorch tells padding by its id.
        padded = np.where(mask, ids % 96, 96)[row]
        expected = model(torch.tensor(padded), attention_mask=torch.tensor(mask[row])).logits
        found = serve(token_ids=padded.astype("int32"), padding_mask=mask[row].astype("int32"))
        assert relative_difference(expected, found) < tolerance


@pytest.mark.parametrize("to", ["onnx", "web", "gguf"])
def test_an_export_for_language_models_alone_says_so(to, capsys, tmp_path):
    source, output = checkpoint(tmp_path / "pt"), tmp_path / f"out{'.gguf' if to == 'gguf' else ''}"
    code, _, err = run(capsys, main_module, "export", source, "--to", to, "--output", output)
    assert code == 2 and f"is of ALGPT2ForSequenceClassification; {to} takes language models" in err
    assert "Traceback" not in err and not output.exists()


@pytest.mark.parametrize("to", ["onnx", "savedmodel"])
def test_a_classifier_of_tokens_is_not_exported(to, capsys, tmp_path):
    ALGPT2ForTokenClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path / "pt")
    code, _, err = run(capsys, main_module, "export", tmp_path / "pt", "--to", to, "--output", tmp_path / "out")
    assert code == 2 and "is of ALGPT2ForTokenClassification" in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_heads_that_keras_lacks_are_refused_before_anything_is_written(tmp_path):
    ALGPT2ForTokenClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path / "pt")
    with pytest.raises(InputError, match="is of ALGPT2ForTokenClassification, which has no counterpart in Keras"):
        pt2tf(tmp_path / "pt", output=tmp_path / "tf")
    assert not (tmp_path / "tf").exists()


@pytest.mark.slow
def test_a_classifier_and_a_language_model_are_not_compared(capsys, tmp_path):
    config = tiny_config(layer_schedule=[0, 1, 0])
    checkpoint(tmp_path / "classifier")
    save_checkpoint(tmp_path / "lm", config)
    code, _, err = run(capsys, main_module, "verify", tmp_path / "classifier", tmp_path / "lm")
    assert code == 2 and "ALGPT2ForSequenceClassification and ALGPT2LMHeadModel" in err
    code, _, err = run(capsys, main_module, "verify", tmp_path / "classifier", "--dataset", "python-docs")
    assert code == 2 and "--dataset and --prompt are for language models" in err
