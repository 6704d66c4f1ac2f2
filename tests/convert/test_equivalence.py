"""TensorFlow and PyTorch compute the same: logits, loss, gradients, hidden states and generation."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from models import both_models, random_batch, random_config, relative_difference

from algpt2.configuration import ACTIVATIONS
from algpt2_tf.loss import next_token_loss
from algpt2_tf.weights import canonical_variables

TOLERANCES = {"float64": 1e-12, "float32": 1e-5}
GRADIENT_TOLERANCES = {"float64": 1e-10, "float32": 1e-5}
SEEDS = range(12)


def tf_outputs(model, ids, mask):
    """Loss, logits and the gradient of every parameter by canonical name, from TensorFlow."""
    variables = canonical_variables(model)
    # The targets of padding count nothing, and the last token has none.
    weights = tf.constant(mask[:, 1:], dtype=model.compute_dtype)
    with tf.GradientTape() as tape:
        logits = model({"token_ids": ids, "padding_mask": mask}, training=True)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(ids[:, 1:], logits[:, :-1])
        loss = tf.reduce_sum(losses * weights) / tf.reduce_sum(weights)
    gradients = tape.gradient(loss, [variable.value for variable, _ in variables.values()])
    return (
        loss,
        logits,
        {
            name: tf.transpose(tf.convert_to_tensor(gradient)) if transposed else tf.convert_to_tensor(gradient)
            for (name, (_, transposed)), gradient in zip(variables.items(), gradients, strict=True)
        },
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("seed", SEEDS)
def test_logits_loss_and_gradients(seed, dtype):
    config = random_config(seed)
    tensorflow, pytorch = both_models(config, dtype, seed)
    ids, mask = random_batch(config, padded=seed % 3 != 0, seed=seed)
    tf_loss, tf_logits, tf_gradients = tf_outputs(tensorflow, ids, mask)

    labels = torch.tensor(np.where(mask, ids, -100))
    output = pytorch(torch.tensor(ids), attention_mask=torch.tensor(mask), labels=labels)
    # The loss of transformers' models is float32 whatever the model is.
    loss = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert relative_difference(output.loss, loss.float()) < TOLERANCES["float32"]
    loss.backward()

    assert relative_difference(output.logits, tf_logits) < TOLERANCES[dtype]
    assert relative_difference(loss, tf_loss) < TOLERANCES[dtype]
    pt_gradients = {name: parameter.grad for name, parameter in pytorch.named_parameters()}
    assert pt_gradients.keys() == tf_gradients.keys()
    # Some gradients vanish in exact arithmetic (a bias of the keys), so they are measured against the largest.
    scale = max(gradient.abs().max().item() for gradient in pt_gradients.values())
    for name, expected in pt_gradients.items():
        assert np.abs(expected.numpy() - tf_gradients[name].numpy()).max() < GRADIENT_TOLERANCES[dtype] * max(
            expected.abs().max().item(), 1e-3 * scale
        ), name


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("seed", SEEDS)
def test_hidden_state_at_every_depth(seed, dtype):
    config = random_config(seed)
    tensorflow, pytorch = both_models(config, dtype, seed)
    ids, mask = random_batch(config, seed=seed)
    per_depth = keras.Model(tensorflow.backbone.input, tensorflow.backbone.hidden_states)
    found = per_depth({"token_ids": ids, "padding_mask": mask})
    output = pytorch(torch.tensor(ids), attention_mask=torch.tensor(mask), output_hidden_states=True)
    assert len(found) == len(output.hidden_states) == config.n_layer + 1
    for expected, state in zip(output.hidden_states, found, strict=True):
        assert relative_difference(expected, state) < TOLERANCES[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("seed", SEEDS)
def test_greedy_generation_token_for_token(seed, dtype):
    config = random_config(seed)
    tensorflow, pytorch = both_models(config, dtype, seed)
    ids, _ = random_batch(config, length=7, padded=False, seed=seed)
    new_tokens = 64
    expected = pytorch.generate(
        torch.tensor(ids),
        attention_mask=torch.ones(ids.shape, dtype=torch.long),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    tensorflow.compile(sampler="greedy")
    padded = np.pad(ids, ((0, 0), (0, new_tokens)))
    prompt = np.broadcast_to(np.arange(padded.shape[1]) < ids.shape[1], padded.shape)
    found = tensorflow.generate({"token_ids": padded, "padding_mask": prompt}, stop_token_ids=None)
    np.testing.assert_array_equal(found["token_ids"], expected.numpy())
    # A constant continuation would prove little.
    assert len(np.unique(expected.numpy()[:, ids.shape[1] :])) > 1


def test_the_random_configurations_cover_what_they_should():
    configs = [random_config(seed) for seed in SEEDS]
    assert {c.activation_function for c in configs} == set(ACTIVATIONS)
    assert {c.is_factorized for c in configs} == {True, False}
    assert {c.tie_projections for c in configs} == {True, False}
    assert {c.tie_word_embeddings for c in configs} == {True, False}
    assert {c.n_inner is None for c in configs} == {True, False}
    assert len({tuple(c.layer_schedule) for c in configs}) >= 6
    shared = [c for c in configs if c.has_depth_parameters and c.n_block < c.n_layer]
    for field in ("depth_norms", "depth_biases", "residual_multiplier"):
        assert len({getattr(c, field) for c in shared}) == 2
    assert {c.depth_lora_rank for c in shared} == {0, 1, 5}


@pytest.mark.parametrize("seed", SEEDS)
def test_the_losses_of_training_agree(seed):
    config = random_config(seed)
    tensorflow, pytorch = both_models(config)
    ids, mask = random_batch(config)
    labels = np.where(mask == 1, ids, -100)
    hidden_states = tensorflow.backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    found, _ = next_token_loss(tensorflow, hidden_states, tf.constant(labels, "int32"))
    with torch.no_grad():
        targets = torch.from_numpy(labels)
        outputs = pytorch(torch.from_numpy(ids), labels=targets, num_items_in_batch=1, skip_logits=True)
        logits = pytorch(torch.from_numpy(ids)).logits[:, :-1].transpose(1, 2)
        expected = torch.nn.functional.cross_entropy(logits, targets[:, 1:], reduction="sum")
    np.testing.assert_allclose(outputs.loss, expected, rtol=1e-12)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
