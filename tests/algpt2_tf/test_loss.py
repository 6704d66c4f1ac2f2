"""The loss in chunks, against TensorFlow's own cross-entropy and its gradients."""

import numpy as np
import pytest
import tensorflow as tf

from algpt2_tf.loss import linear_cross_entropy

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
