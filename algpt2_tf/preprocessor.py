"""Strings to model inputs and back: the preprocessors of the tasks."""

import keras
import numpy as np
import tensorflow as tf
from keras_hub.layers import MultiSegmentPacker, StartEndPacker
from keras_hub.models import CausalLMPreprocessor, TextClassifierPreprocessor
from keras_hub.src.utils.tensor_utils import preprocessing_function

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


@keras.saving.register_keras_serializable(package="algpt2")
class TFALGPT2TextClassifierPreprocessor(TextClassifierPreprocessor):
    """Strings to `(x, y, sample_weight)` for a `TFALGPT2TextClassifier`: the tokens of a text, padded on the right.

    Args:
        tokenizer: `TFALGPT2Tokenizer`.
        sequence_length: int. The length that inputs are padded or cut to.
        truncate: str, `"round_robin"` or `"waterfall"`. How several segments share that, as in
            `keras_hub.layers.MultiSegmentPacker`.
        **kwargs: as in `keras_hub.models.TextClassifierPreprocessor`.

    Call arguments:
        x: str, list of str or string tensor; or a tuple of them, the segments of each text, which the end token parts.
        y, sample_weight: passed on as they are.

    Raises:
        ValueError: for a text without tokens.
    """

    backbone_cls = TFALGPT2Backbone
    tokenizer_cls = TFALGPT2Tokenizer

    def __init__(self, tokenizer, sequence_length=1024, truncate="round_robin", **kwargs):
        super().__init__(tokenizer, sequence_length, truncate, **kwargs)

    def build(self, input_shape):
        # Padding that is no token tells what is padded, whatever tokens the text has.
        self.packer = MultiSegmentPacker(
            start_value=[],
            end_value=[],
            sep_value=[self.tokenizer.end_token_id],
            pad_value=-1,
            truncate=self.truncate,
            sequence_length=self.sequence_length,
        )
        self.built = True

    @preprocessing_function
    def _call_tf(self, x, y=None, sample_weight=None):
        packed = self._packed(x)
        mask = tf.cast(packed >= 0, "int32")
        has_tokens = tf.reduce_all(tf.reduce_any(packed >= 0, axis=-1))
        with tf.control_dependencies([tf.debugging.Assert(has_tokens, [NO_TOKENS])]):
            token_ids = tf.where(packed >= 0, packed, self.tokenizer.pad_token_id)
        return keras.utils.pack_x_y_sample_weight({"token_ids": token_ids, "padding_mask": mask}, y, sample_weight)

    def _call_python(self, x, y=None, sample_weight=None):
        packed = np.asarray(self._packed(x), dtype="int32")
        is_token = packed >= 0
        if not is_token.any(axis=-1).all():
            raise ValueError(NO_TOKENS)
        token_ids = np.where(is_token, packed, self.tokenizer.pad_token_id).astype("int32")
        inputs = {"token_ids": token_ids, "padding_mask": is_token.astype("int32")}
        return keras.utils.pack_x_y_sample_weight(inputs, y, sample_weight)

    def _packed(self, x):
        segments = x if isinstance(x, tuple) else (x,)
        return self.packer(tuple(self.tokenizer(segment) for segment in segments))[0]

    @classmethod
    def _add_missing_kwargs(cls, loader, kwargs):
        # Of a preset without a preprocessor of this class, such as that of a language model.
        kwargs.setdefault("sequence_length", loader.config["config"]["config"]["n_positions"])
        return super()._add_missing_kwargs(loader, kwargs)


NO_TOKENS = "a text has no tokens; leave out empty texts"


def _bool_to_int(array):
    if isinstance(array, tf.Tensor):
        return tf.cast(array, "int32") if array.dtype == tf.bool else array
    return array.astype("int32") if array.dtype == bool else array


# KerasHub names its models without a framework.
ALGPT2CausalLMPreprocessor = TFALGPT2CausalLMPreprocessor
ALGPT2TextClassifierPreprocessor = TFALGPT2TextClassifierPreprocessor
