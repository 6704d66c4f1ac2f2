"""What the heads that read one token of a text share."""

import keras
from keras import ops


class LastTokenHead(keras.layers.Layer):
    """A linear layer on the last token that is not padding; classes that are saved derive from it.

    Args:
        units: int.
        initializer_range: float. The standard deviation of the initial matrix.
        use_bias: bool.
        **kwargs: as in `keras.layers.Layer`.

    Call arguments:
        hidden_states: float (batch, length, H).
        padding_mask: int or bool (batch, length), 0 for padding on either side.

    Returns:
        float (batch, units).
    """

    def __init__(self, units, initializer_range, use_bias, **kwargs):
        super().__init__(**kwargs)
        self.units, self.initializer_range, self.use_bias = units, initializer_range, use_bias

    def build(self, hidden_states_shape, padding_mask_shape=None):
        initializer = keras.initializers.RandomNormal(stddev=self.initializer_range)
        shape = (hidden_states_shape[-1], self.units)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=initializer)
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")

    def call(self, hidden_states, padding_mask):
        outputs = ops.matmul(last_token(hidden_states, padding_mask), self.kernel)
        return outputs + self.bias if self.use_bias else outputs

    def get_config(self):
        return {**super().get_config(), "initializer_range": self.initializer_range}


def last_token(hidden_states, padding_mask):
    """The hidden state of the last token of each sequence that is not padding.

    Args:
        hidden_states: float (batch, length, H).
        padding_mask: int or bool (batch, length), 0 for padding on either side.

    Returns:
        float (batch, H).
    """
    is_token = ops.cast(ops.not_equal(padding_mask, 0), "int32")
    last = ops.argmax(is_token * ops.arange(ops.shape(hidden_states)[1]), axis=-1)
    return ops.take_along_axis(hidden_states, last[:, None, None], axis=1)[:, 0]
