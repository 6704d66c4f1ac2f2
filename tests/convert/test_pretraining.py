"""The models for pretraining compute the same in both frameworks, and convert both ways."""

import json

import numpy as np
import pytest
import tensorflow as tf
import torch
from models import (
    both_pretraining_models,
    pretraining_weights,
    random_batch,
    random_config,
    read_checkpoint,
    relative_difference,
    save_checkpoint,
    tiny_config,
)
from transformers import AutoModelForPreTraining

from algpt2.checkpoints.config_file import read_config
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_tf import TFALGPT2ForPreTraining, TFALGPT2LMHeadModel
from algpt2_tf.weights import canonical_variables
from convert import compare_directory, pt2tf, tf2pt
from convert.__main__ import main

ORDER = np.array([1, 0, 1])


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("seed", range(4))
def test_logits_losses_and_gradients(seed, dtype):
    tolerance, gradient_tolerance = {"float64": (1e-12, 1e-10), "float32": (1e-5, 1e-5)}[dtype]
    config = random_config(seed)
    tensorflow, pytorch = both_pretraining_models(config, dtype, seed)
    ids, mask = random_batch(config, seed=seed)

    variables = canonical_variables(tensorflow)
    with tf.GradientTape() as tape:
        outputs = tensorflow({"token_ids": ids, "padding_mask": mask}, training=True)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(ids[:, 1:], outputs["logits"][:, :-1])
        lm_loss = tf.reduce_sum(losses * mask[:, 1:].astype(dtype)) / mask[:, 1:].sum()
        sop_losses = tf.nn.sparse_softmax_cross_entropy_with_logits(ORDER, outputs["sop_logits"])
        tf_loss = lm_loss + tf.reduce_mean(sop_losses)
    gradients = tape.gradient(tf_loss, [variable.value for variable, _ in variables.values()])

    labels, order = torch.tensor(np.where(mask, ids, -100)), torch.tensor(ORDER)
    output = pytorch(torch.tensor(ids), attention_mask=torch.tensor(mask), labels=labels, sentence_order_label=order)
    # The losses of transformers' models are float32 whatever the model is.
    loss = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss = loss + torch.nn.functional.cross_entropy(output.sop_logits, order)
    assert relative_difference(output.loss, loss.float()) < 1e-5
    loss.backward()

    for name in ("logits", "sop_logits"):
        assert relative_difference(output[name], outputs[name]) < tolerance
    assert relative_difference(loss, tf_loss) < tolerance
    expected = {name: parameter.grad.numpy() for name, parameter in pytorch.named_parameters()}
    assert expected.keys() == variables.keys()
    scale = max(np.abs(gradient).max() for gradient in expected.values())
    for (name, (_, transposed)), gradient in zip(variables.items(), gradients, strict=True):
        found = tf.convert_to_tensor(gradient).numpy()
        difference = np.abs((found.T if transposed else found) - expected[name]).max()
        assert difference < gradient_tolerance * max(np.abs(expected[name]).max(), 1e-3 * scale), name


def checkpoint(directory, dtype="float32"):
    config = tiny_config(layer_schedule=[0, 1, 0], architectures=["ALGPT2ForPreTraining"])
    return save_checkpoint(directory, config, pretraining_weights(config, dtype))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_round_trip_keeps_the_head_bit_for_bit(dtype, tmp_path):
    source = checkpoint(tmp_path / "source", dtype)
    there = pt2tf(source, output=tmp_path / "tf").directory
    back = tf2pt(there, output=tmp_path / "pt").directory
    for directory in (there, back):
        assert json.loads((directory / "config.json").read_text())["architectures"] == ["ALGPT2ForPreTraining"]
    expected, found = read_checkpoint(source)[1], read_checkpoint(back)[1]
    assert "sop_classifier.weight" in expected and found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_both_frameworks_load_what_was_converted(tmp_path):
    directory = checkpoint(tmp_path / "both")
    pt2tf(directory)
    names = [comparison.name for comparison in compare_directory(directory)]
    assert [name for name in names if "sentence-order" in name] == [
        "largest sentence-order logit difference, unpadded",
        "largest sentence-order logit difference, padded",
    ]
    assert all(comparison.passed for comparison in compare_directory(directory))
    ids = np.arange(24).reshape(2, 12)
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    expected = AutoModelForPreTraining.from_pretrained(directory).eval()(torch.tensor(ids))
    found = TFALGPT2ForPreTraining.from_pretrained(directory)(inputs)
    assert relative_difference(expected.sop_logits, found["sop_logits"]) < 1e-5
    logits = ALGPT2LMHeadModel.from_pretrained(directory).eval()(torch.tensor(ids)).logits
    assert relative_difference(logits, TFALGPT2LMHeadModel.from_pretrained(directory)(inputs)) < 1e-5


def test_heads_that_differ_fail_the_comparison(tmp_path):
    directory = checkpoint(tmp_path / "both")
    pt2tf(directory)
    weights = read_checkpoint(directory)[1]
    weights["sop_classifier.bias"] = weights["sop_classifier.bias"] + np.float32(0.1)
    save_checkpoint(directory, read_config(directory), weights)
    assert {c.name for c in compare_directory(directory) if not c.passed} == {
        "largest sentence-order logit difference, unpadded",
        "largest sentence-order logit difference, padded",
    }


@pytest.mark.slow
def test_verify_compares_the_language_model_on_text(text_tokenizer, tmp_path, capsys):
    config = tiny_config(vocab_size=len(text_tokenizer), architectures=["ALGPT2ForPreTraining"])
    save_checkpoint(tmp_path, config, pretraining_weights(config, "float32"), text_tokenizer)
    pt2tf(tmp_path)
    main(["verify", str(tmp_path), "--dataset", "python-docs", "--length", "64", "--prompt", "The value"])
    printed = capsys.readouterr().out
    assert "sentence-order logit" in printed and "greedy continuation" in printed and "FAILED" not in printed
