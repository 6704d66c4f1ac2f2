"""Weights in the form that products of one row, compiled by XLA on a CPU, read fastest."""

import contextlib

import keras
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla


def on_cpu():
    """bool: whether TensorFlow computes on CPUs alone."""
    return not tf.config.list_logical_devices("GPU")


def streamed_variables(model):
    """The matrices of a model that `StreamedWeights` gains by: those in half precision, and some in 8 bits.

    These are of layers of which Keras rounds the weights alone, by `Int8QuantizationConfig(activation_quantizer=None)`:
    products of integers by XLA are slower.

    Args:
        model: `keras.Layer`, usually with layers inside it.

    Returns:
        list of `keras.Variable`.
    """
    variables = [variable for variable in model.variables if variable.dtype in ("bfloat16", "float16")]
    for layer in model._flatten_layers():
        # Embeddings that are only looked up have no quantizer of inputs. With half precision beside them XLA converts
        # integers one by one.
        rounds_weights_alone = getattr(layer, "inputs_quantizer", False) is None
        if layer.quantization_mode == "int8" and rounds_weights_alone and layer.compute_dtype == "float32":
            variables += [variable for variable in layer.variables if variable.dtype == "int8"]
    return [variable for variable in variables if len(variable.shape) == 2]


class StreamedWeights:
    """Matrices in half precision or 8 bits that XLA reads from memory at every step of a loop.

    By itself XLA would convert them to float32 before the loop, and read two or four times the bytes in every step.
    They are also stored transposed, with a row for each output, which products of one row read faster.

    Args:
        variables: list of `keras.Variable`, as of `streamed_variables`.

    Example:
        >>> layer = keras.layers.Dense(3, dtype="bfloat16")
        >>> layer.build((None, 2))
        >>> @tf.function(jit_compile=True)
        ... def steps(row):
        ...     weights = StreamedWeights(streamed_variables(layer))
        ...     for step in tf.range(4):
        ...         with weights.scope(step):
        ...             row = layer(row)[:, :2]
        ...     return row
        >>> steps(tf.ones((1, 2), "bfloat16")).shape
        TensorShape([1, 2])
    """

    def __init__(self, variables):
        self._variables = variables
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
