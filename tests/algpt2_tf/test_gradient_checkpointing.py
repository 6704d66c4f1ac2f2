"""Gradient checkpointing in Keras: it computes again what it does not keep, and changes nothing else."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from models import random_batch, random_weights, tiny_config

from algpt2_tf import TFALGPT2Backbone, TFALGPT2LMHeadModel
from algpt2_tf.devices import select_strategy
from algpt2_tf.weights import assign_weights, canonical_weights

pytestmark = pytest.mark.slow

CONFIG = tiny_config(layer_schedule=[0, 1, 0], attn_pdrop=0.3, resid_pdrop=0.2, embd_pdrop=0.1)


def seeded_model(gradient_checkpointing, config=CONFIG, dtype="float64"):
    keras.utils.set_random_seed(0)
    backbone = TFALGPT2Backbone(config, dtype=dtype, gradient_checkpointing=gradient_checkpointing)
    model = TFALGPT2LMHeadModel(backbone)
    assign_weights(model, random_weights(config, dtype))
    return model


def gradient_function(model):
    """A function without arguments to the loss and the gradients of a training step."""
    ids, mask = random_batch(CONFIG)

    def compute():
        with tf.GradientTape() as tape:
            logits = model({"token_ids": ids, "padding_mask": mask}, training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(ids, logits))
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        return loss, [tf.convert_to_tensor(gradient) for gradient in gradients]

    return compute


@pytest.mark.parametrize("rate", [0.3, 0.0])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_gradients_are_the_same_with_dropout_too(compiled, rate, monkeypatch, caplog):
    config = tiny_config(layer_schedule=[0, 1, 0], attn_pdrop=rate, resid_pdrop=rate / 2, embd_pdrop=rate)
    steps = []
    for checkpointing in (False, True, "nothing is computed again"):
        if isinstance(checkpointing, str):
            monkeypatch.setattr(keras, "remat", lambda function: function)
        compute = gradient_function(seeded_model(checkpointing is True, config))
        compute = tf.function(compute) if compiled else compute
        steps.append([compute() for _ in range(2)])
    assert "must be floating" not in caplog.text
    # The second step shows that the random state has moved on alike.
    *variants, reference = steps
    for (expected_loss, expected), *others in zip(reference, *variants, strict=True):
        for loss, found in others:
            np.testing.assert_allclose(loss, expected_loss, rtol=1e-14)
            for gradient, expected_gradient in zip(found, expected, strict=True):
                np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-14)
    assert (float(steps[0][0][0]) == float(steps[0][1][0])) == (rate == 0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_is_computed_again(checkpointing):
    graph = tf.function(gradient_function(seeded_model(checkpointing))).get_concrete_function().graph
    count = collections.Counter(operation.type for operation in graph.get_operations())
    # Attention weights and the activation always are, the rest of a block, with both its other dropouts, if asked.
    assert count["Softmax"] == count["Tanh"] == 2 * CONFIG.n_layer
    assert count["StatelessRandomUniformV2"] == 1 + CONFIG.n_layer * (6 if checkpointing else 4)


@pytest.mark.parametrize("how", ["compiled", "jit_compiled", "mirrored"])
def test_fit_learns_the_same(how):
    config = tiny_config(n_embd=6, layer_schedule=[0, 0], attn_pdrop=0.3, resid_pdrop=0.2)
    ids, mask = (np.repeat(array, 2, axis=0)[:4] for array in random_batch(config))
    weights = []
    for checkpointing in (False, True):
        with select_strategy("mirrored" if how == "mirrored" else "single").scope():
            model = seeded_model(checkpointing, config)
            model.compile(keras.optimizers.SGD(0.1), "auto", jit_compile=how == "jit_compiled")
        model.fit({"token_ids": ids, "padding_mask": mask}, ids, batch_size=4, epochs=3, shuffle=False, verbose=0)
        weights.append(canonical_weights(model))
    untrained = random_weights(config)
    for name, expected in weights[0].items():
        np.testing.assert_allclose(weights[1][name], expected, rtol=1e-10, atol=1e-12, err_msg=name)
        assert np.abs(expected - untrained[name]).max() > 0


def test_it_can_be_set_later_and_is_not_saved(tmp_path):
    model = seeded_model(False)
    model.backbone.gradient_checkpointing = True
    assert all(block.gradient_checkpointing for block in model.backbone.transformer_layers)
    model.save_pretrained(tmp_path)
    model.save(tmp_path / "model.keras")
    for loaded in (
        TFALGPT2LMHeadModel.from_pretrained(tmp_path, dtype="float64"),
        keras.models.load_model(tmp_path / "model.keras"),
    ):
        assert not loaded.backbone.gradient_checkpointing
        for name, array in canonical_weights(model).items():
            np.testing.assert_array_equal(canonical_weights(loaded)[name], array)
