"""Strings to model inputs and back: the preprocessor of the task."""

import keras
import numpy as np
import tensorflow as tf
from keras_hub.layers import StartEndPacker
from keras_hub.models import CausalLMPreprocessor

from algpt2_tf.backbone import TFALGPT2Backbone
from algpt2_tf.tokenizer import TFALGPT2Tokenizer


@keras.saving.register_keras_serializable(package="algpt2")
class TFALGPT2CausalLMPreprocessor(CausalLMPreprocessor):
    """Strings to `(x, y, sample_weight)` for `fit`, and to and from token ids for `generate`.

    Args:
        tokenizer: `TFALGPT2Tokenizer`.
        sequence_length: int. The length that inputs are padded or cut to.
        add_start_token: bool. Whether to put the start token before every text, even if the tokenizer does not. Off by
            default, so that `generate` continues what transformers would.
        add_end_token: bool. Whether to put it after every text in `fit`; one that is cut has no end.
        **kwargs: as in `keras_hub.models.CausalLMPreprocessor`.
    """

    backbone_cls = TFALGPT2Backbone
    tokenizer_cls = TFALGPT2Tokenizer

    def __init__(self, tokenizer, sequence_length=1024, add_start_token=False, add_end_token=True, **kwargs):
        super().__init__(
            tokenizer=tokenizer,
            sequence_length=sequence_length,
            add_start_token=add_start_token,
            add_end_token=add_end_token,
            **kwargs,
        )

    def build(self, input_shape):
        # KerasHub's packer puts its start token before every prompt of `generate`, whatever `add_start_token` says.
        starts = self.add_start_token and not self.tokenizer.adds_start
        self.packer = StartEndPacker(
            start_value=self.tokenizer.start_token_id if starts else None,
            end_value=self.tokenizer.end_token_id,
            pad_value=self.tokenizer.pad_token_id,
            sequence_length=self.sequence_length,
            return_padding_mask=True,
        )
        self.built = True

    def call(self, x, y=None, sample_weight=None, sequence_length=None):
        outputs = super().call(x, y=y, sample_weight=sample_weight, sequence_length=sequence_length)
        # A strategy with several replicas cannot merge batches of bool.
        return keras.tree.map_structure(_bool_to_int, outputs)

    def _call_python(self, x, y=None, sample_weight=None, sequence_length=None):
        # KerasHub puts an end token after a text that is cut, too: here into a position that is then left out.
        outputs = super()._call_python(x, y, sample_weight, (sequence_length or self.sequence_length) + 1)
        return keras.tree.map_structure(lambda array: array[..., :-1], outputs)

    def generate_preprocess(self, x, sequence_length=None):
        inputs = super().generate_preprocess(x, sequence_length=sequence_length)
        if tf.executing_eagerly() and not np.asarray(inputs["padding_mask"]).any(axis=-1).all():
            raise ValueError("a prompt has no tokens; give some text, or build the preprocessor with add_start_token")
        return inputs


def _bool_to_int(array):
    if isinstance(array, tf.Tensor):
        return tf.cast(array, "int32") if array.dtype == tf.bool else array
    return array.astype("int32") if array.dtype == bool else array


# KerasHub names its models without a framework.
ALGPT2CausalLMPreprocessor = TFALGPT2CausalLMPreprocessor
