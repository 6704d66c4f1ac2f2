"""Training with the matrices that an export in 4 bits will have."""

import contextlib

import tensorflow as tf

from algpt2.onnx.quantization import BLOCK_SIZES, quantized_names
from algpt2_tf.weights import canonical_variables


class QuantizationAware:
    """Gives a step the gradients of matrices in 4 bits, and takes it from the exact ones.

    This is the straight-through estimator (Bengio et al., 2013, https://arxiv.org/abs/1308.3432), by which models are
    trained for the rounding that they will meet (Jacob et al., 2018, https://arxiv.org/abs/1712.05877).

    Args:
        model: `TFALGPT2LMHeadModel`; its exact matrices are those of checkpoints.
    """

    def __init__(self, model):
        variables = canonical_variables(model)
        self.matrices = [variables[name] for name in quantized_names(model.config)]

    def round(self):
        """Round the matrices.

        Returns:
            list of the exact ones, float tensors, to be assigned again.
        """
        exact = [tf.identity(variable.value) for variable, _ in self.matrices]
        self.assign(
            [
                tf.transpose(rounded(tf.transpose(matrix))) if transposed else rounded(matrix)
                for matrix, (_, transposed) in zip(exact, self.matrices, strict=True)
            ]
        )
        return exact

    def assign(self, matrices):
        """Set the matrices to those of a list; within a step every replica gives its own."""

        def update(strategy, matrices):
            for (variable, _), matrix in zip(self.matrices, matrices, strict=True):
                strategy.extended.update(variable.value, lambda kept, new: kept.assign(new), args=(matrix,))

        if tf.executing_eagerly():
            for (variable, _), matrix in zip(self.matrices, matrices, strict=True):
                variable.assign(matrix)
        else:
            tf.distribute.get_replica_context().merge_call(update, args=(matrices,))

    @contextlib.contextmanager
    def applied(self):
        """A context in which the matrices are rounded."""
        exact = self.round()
        try:
            yield
        finally:
            self.assign(exact)


def rounded(matrix):
    """A matrix in 4 bits, at the scales at which the largest number of a block is just not cut off.

    Args:
        matrix: float (rows, columns).

    Returns:
        tensor of the same shape and type, in which `algpt2.onnx.quantization.quantize_blocks` finds the same levels.

    Example:
        >>> rounded(tf.constant([[-8.0, 0.4, 3.3, 7.9]])).numpy().tolist()
        [[-8.0, 0.0, 3.0, 7.0]]
    """
    size, half = BLOCK_SIZES[4], 8
    rows, columns = matrix.shape
    blocks = tf.reshape(tf.pad(matrix, ((0, 0), (0, -columns % size))), (rows, -1, size))
    least, most = (reduce(blocks, axis=-1, keepdims=True) for reduce in (tf.reduce_min, tf.reduce_max))
    scales = tf.where(most > -least, most, least) / -half
    levels = tf.clip_by_value(tf.round(tf.math.divide_no_nan(blocks, scales)), -half, half - 1)
    return tf.reshape(levels * scales, (rows, -1))[:, :columns]
