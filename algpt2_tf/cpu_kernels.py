"""Weights in the form that products of one row, compiled by XLA on a CPU, read fastest."""

import contextlib

import keras
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla


class StreamedWeights:
    """Half-precision matrices that XLA reads from memory at every step of a loop.

    By itself XLA would convert them to float32 before the loop, and read twice the bytes in every step. They are also
    stored transposed, with a row for each output, which products of one row read faster.

    Args:
        variables: list of `keras.Variable`, some of them matrices in half precision.

    Example:
        >>> layer = keras.layers.Dense(3, dtype="bfloat16")
        >>> layer.build((None, 2))
        >>> @tf.function(jit_compile=True)
        ... def steps(row):
        ...     weights = StreamedWeights(layer.variables)
        ...     for step in tf.range(4):
        ...         with weights.scope(step):
        ...             row = layer(row)[:, :2]
        ...     return row
        >>> steps(tf.ones((1, 2), "bfloat16")).shape
        TensorShape([1, 2])
    """

    def __init__(self, variables):
        self._variables = [v for v in variables if v.dtype in ("bfloat16", "float16") and len(v.shape) == 2]
        self._stored = [_turned(variable, variable.value) for variable in self._variables]

    def scope(self, step):
        """The context in which layers take these weights; `step` is a tensor that changes from step to step."""
        if not self._stored:
            return contextlib.nullcontext()
        # What depends on the step is not computed before the loop.
        _, *stored = xla.optimization_barrier(step, *self._stored)
        pairs = zip(self._variables, stored, strict=True)
        return keras.StatelessScope([(variable, _turned(variable, matrix)) for variable, matrix in pairs])


def _turned(variable, matrix):
    """A matrix turned from its layer's layout to the one here, or back; tables, looked up by row, stay as they are."""
    return tf.transpose(matrix) if variable.name == "kernel" else matrix
