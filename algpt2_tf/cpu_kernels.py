"""Weights as products of one row, compiled by XLA on a CPU, read them fastest."""

import contextlib

import keras
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla


class StreamedWeights:
    """Half-precision matrices that XLA reads from memory at every step of a loop.

    By itself it would convert them to float32 before the loop and read twice the bytes. Products of one row also read
    a matrix faster by its outputs.

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
    """From how a layer has a matrix to how it is stored here, and back; tables are looked up by their rows."""
    return tf.transpose(matrix) if variable.name == "kernel" else matrix
