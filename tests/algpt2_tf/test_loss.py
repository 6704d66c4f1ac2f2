"""The loss in chunks, against TensorFlow's own cross-entropy; and that of `fit`, against transformers' GPT-2."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from models import tiny_config
from transformers import GPT2Config, GPT2LMHeadModel

from algpt2_tf import TFALGPT2Backbone, TFALGPT2LMHeadModel
from algpt2_tf.devices import select_strategy
from algpt2_tf.loss import linear_cross_entropy
from algpt2_tf.optimization import create_optimizer
from algpt2_tf.training import TrainingModel
from algpt2_tf.weights import canonical_weights

V, E = 31, 5


def reference(states, weight, labels):
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        tf.maximum(labels, 0), tf.matmul(states, weight, transpose_b=True)
    )
    return tf.reduce_sum(tf.where(labels == -100, tf.zeros_like(losses), losses))


def loss_and_gradients(function, states, weight, labels):
    states, weight = tf.constant(states), tf.constant(weight)
    with tf.GradientTape() as tape:
        tape.watch((states, weight))
        loss = 3.0 * function(states, weight, labels)
    return [loss, *tape.gradient(loss, (states, weight))]


@pytest.mark.parametrize("shape", ["known", "open", "compiled"])
@pytest.mark.parametrize("logits", [1, 7 * V, 1000 * V], ids=["smallest", "uneven", "one chunk"])
def test_loss_and_gradients_are_those_of_whole_logits(logits, shape):
    draw = np.random.default_rng(0)
    # Large values, which a softmax without its maximum would overflow on.
    states, weight = draw.normal(size=(11, E)) * 30, draw.normal(size=(V, E)) * 10
    labels = draw.integers(V, size=11, dtype=np.int32)
    labels[[0, 7]] = -100

    def chunked(states, weight, labels):
        return linear_cross_entropy(states, weight, labels, logits)

    if shape == "open":
        shapes = (((None, E), tf.float64), ((V, E), tf.float64), ((None,), tf.int32))
        chunked = tf.function(chunked, input_signature=[tf.TensorSpec(*shape) for shape in shapes])
    if shape == "compiled":
        chunked = tf.function(chunked, jit_compile=True)
    expected = loss_and_gradients(reference, states, weight, labels)
    for found, value in zip(loss_and_gradients(chunked, states, weight, labels), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-10, atol=1e-10)


TEXTS = [
    "The value of an object is its value.",
    "Return it.",
    "A text that is longer than the model is wide, and that goes on and on until it is cut somewhere in its middle.",
    "x",
    "The last batch has one text.",
]
LENGTH = 16


@pytest.fixture
def gpt2(text_tokenizer, tmp_path):
    """transformers' GPT-2, saved with a tokenizer."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(text_tokenizer),
        n_positions=LENGTH + 1,
        n_embd=12,
        n_layer=2,
        n_head=2,
        eos_token_id=0,
        bos_token_id=0,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=0.3,
    )
    model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path)
    text_tokenizer.save_pretrained(tmp_path)
    return model


def gpt2_batches(texts, tokenizer, size=4):
    """Ids and labels of batches, as transformers takes them: padding is -100; only texts that are whole have an end."""
    rows = [torch.tensor([*tokenizer.encode(text), tokenizer.eos_token_id][: LENGTH + 1]) for text in texts]
    assert min(len(row) for row in rows) < max(len(row) for row in rows) == LENGTH + 1
    for start in range(0, len(rows), size):
        yield torch.nn.utils.rnn.pad_sequence(rows[start : start + size], batch_first=True, padding_value=-100)


def gpt2_loss(model, labels):
    """The loss, and the number of the labels that count."""
    return model(labels.clamp(min=0), labels=labels).loss, (labels[:, 1:] >= 0).sum().item()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["single", "mirrored"])
def test_fit_on_strings_trains_as_transformers_gpt2(strategy, gpt2, text_tokenizer, tmp_path):
    optimizer = torch.optim.SGD(gpt2.parameters(), 0.1)
    with select_strategy(strategy).scope():
        model = TFALGPT2LMHeadModel.from_pretrained(tmp_path)
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss="auto")
    model.preprocessor.sequence_length = LENGTH
    for _ in range(2):
        steps = []
        for labels in gpt2_batches(TEXTS, text_tokenizer):
            loss, count = gpt2_loss(gpt2, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps.append((loss.item(), count))
        values, counts = zip(*steps, strict=True)
        shown = model.fit(TEXTS, batch_size=4, shuffle=False, verbose=0).history["loss"][0]
        np.testing.assert_allclose(shown, np.average(values, weights=counts), rtol=1e-5)
    for name, array in canonical_weights(model).items():
        expected = gpt2.get_parameter(name).detach().numpy()
        expected = expected.T if ".c_" in name and expected.ndim == 2 else expected
        np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-5, err_msg=name)
    evaluated = model.evaluate(TEXTS, batch_size=4, verbose=0, return_dict=True)["loss"]
    values, counts = zip(*(gpt2_loss(gpt2, labels) for labels in gpt2_batches(TEXTS, text_tokenizer)), strict=True)
    np.testing.assert_allclose(evaluated, np.average([v.item() for v in values], weights=counts), rtol=1e-5)


def labelled(config):
    """Ids, and labels of which some are ignored and some weigh half."""
    draw = np.random.default_rng(0)
    ids, labels = draw.integers(config.vocab_size, size=(2, 5, 6))
    labels[0, 2:] = labels[3] = -100
    return {"token_ids": ids, "padding_mask": np.ones_like(ids)}, labels, draw.choice([0.5, 1.0], size=labels.shape)


@pytest.mark.parametrize("reduction", ["auto", "sum_over_batch_size", "mean_with_sample_weight", "sum"])
def test_labels_that_are_ignored_and_weights_of_tokens(reduction):
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(tiny_config()))
    loss = reduction
    if loss != "auto":
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=reduction)
    model.compile(optimizer="sgd", loss=loss)
    x, labels, weights = labelled(model.config)
    logits = np.asarray(model(x), "float64")
    losses = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, np.maximum(labels, 0)[..., None], -1)[..., 0]
    for weight in (np.ones_like(weights), weights):
        weight = weight * (labels >= 0)
        expected = (losses * weight).sum() if reduction == "sum" else np.average(losses, weights=weight)
        found = model.evaluate(x, labels, sample_weight=weight, batch_size=5, verbose=0, return_dict=True)
        np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
        right = np.average(logits.argmax(-1) == labels, weights=weight)
        np.testing.assert_allclose(found["sparse_categorical_accuracy"], right, rtol=1e-5)
    by_label = model.evaluate(x, labels, batch_size=5, verbose=0)
    by_weight = model.evaluate(x, np.maximum(labels, 0), sample_weight=1.0 * (labels >= 0), batch_size=5, verbose=0)
    assert by_label == by_weight


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["single", "mirrored"])
def test_weights_of_sequences_are_those_of_all_their_tokens(strategy):
    config = tiny_config()
    x, labels, _ = labelled(config)
    # As many rows as two replicas can share.
    x, labels = {name: values[1:] for name, values in x.items()}, labels[1:]
    of_sequences = np.arange(len(labels)) + 1.0
    of_tokens = np.repeat(of_sequences[:, None], labels.shape[1], axis=1)
    with select_strategy(strategy).scope():
        keras.utils.set_random_seed(0)
        model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config))
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    options = {"batch_size": len(labels), "verbose": 0}
    # The weights of the sequences come first, when Keras has not built the model's loss yet.
    found, expected = (model.evaluate(x, labels, sample_weight=each, **options) for each in (of_sequences, of_tokens))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.isfinite(model.fit(x, labels, sample_weight=of_sequences, **options).history["loss"]).all()


@pytest.mark.slow
def test_fit_in_the_float_type_of_keras():
    config = tiny_config()
    x, labels, _ = labelled(config)
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    try:
        model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config))
        logits = model.predict(x, verbose=0).astype("float64")
        log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        losses = -np.take_along_axis(log_probabilities, np.maximum(labels, 0)[..., None], axis=-1)[..., 0]
        expected = losses[labels >= 0].mean()
        loss = model.fit(x, labels, batch_size=len(labels), verbose=0).history["loss"]
    finally:
        keras.config.set_floatx(before)
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)


@pytest.mark.slow
def test_a_model_that_is_frozen_learns_nothing():
    config = tiny_config()
    x, labels, _ = labelled(config)
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config))
    before = model.get_weights()
    model.trainable = False
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    expected = model.evaluate(x, labels, batch_size=len(labels), verbose=0)
    with pytest.warns(UserWarning, match="no trainable weights"):
        loss = model.fit(x, labels, batch_size=len(labels), verbose=0).history["loss"]
    np.testing.assert_allclose(loss, np.ravel(expected)[:1], rtol=1e-6)
    assert all((one == other).all() for one, other in zip(before, model.get_weights(), strict=True))


@pytest.mark.slow
def test_a_step_without_a_label_that_counts_changes_nothing():
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(tiny_config(layer_schedule=[0])))
    before = canonical_weights(model)
    x, labels, _ = labelled(model.config)
    nothing = np.full_like(labels, -100)
    model.compile(optimizer="sgd", loss="auto")
    assert model.fit(x, nothing, verbose=0).history["loss"] == [0.0]
    trained = TrainingModel(model)
    optimizer = create_optimizer("adamw", 0.1, weight_decay=0.0, max_grad_norm=1.0)
    optimizer.build(model.trainable_variables)
    trained.compile(optimizer=optimizer)
    logs = trained.train_step({"input_ids": x["token_ids"].astype("int32"), "labels": nothing.astype("int32")})
    assert logs["loss"].numpy() == [0.0]
    for name, array in canonical_weights(model).items():
        np.testing.assert_array_equal(array, before[name])
