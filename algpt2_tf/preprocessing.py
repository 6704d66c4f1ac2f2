"""Strings to model inputs and back: a tokenizer layer over tokenizer.json, and the preprocessor of the task."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tokenizers
from keras_hub.layers import StartEndPacker
from keras_hub.models import CausalLMPreprocessor
from keras_hub.tokenizers import Tokenizer

from algpt2.checkpoint import TOKENIZER_FILE
from algpt2.errors import InputError
from algpt2.tokenization import END_OF_TEXT, load_tokenizer, save_tokenizer
from algpt2_tf.backbone import TFALGPT2Backbone


@keras.saving.register_keras_serializable(package="algpt2")
class TFALGPT2Tokenizer(Tokenizer):
    """A tokenizer layer that gives the ids of the fast tokenizer, in and out of graph mode.

    The work is done by the `tokenizers` library in both modes, so a tf.data pipeline runs it as a Python function.

    Args:
        tokenizer: `tokenizers.Tokenizer`, the text of a tokenizer.json, or `None` if assets are loaded later.
        end_token: str. The token at the end of a document, also used to start one and to pad.
        **kwargs: as in `keras_hub.tokenizers.Tokenizer`.

    Call arguments:
        inputs: str, list of str, or string tensor of rank 0 or 1.

    Returns:
        int32 token ids: a vector for one string; for several a list of lists, or a ragged tensor in graph mode.

    Raises:
        ValueError: if `end_token` is not in the vocabulary.
    """

    backbone_cls = TFALGPT2Backbone

    def __init__(self, tokenizer=None, end_token=END_OF_TEXT, dtype="int32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self.file_assets = [TOKENIZER_FILE]
        self._tokenizer = None
        # There is nothing to build, and `quantize` refuses models with unbuilt layers.
        self.built = True
        self._add_special_token(end_token, "end_token")
        self._add_special_token(end_token, "start_token")
        self._add_special_token(end_token, "pad_token")
        if tokenizer is not None:
            self.set_tokenizer(tokenizer)

    def set_tokenizer(self, tokenizer):
        """Use another tokenizer.

        Args:
            tokenizer: `tokenizers.Tokenizer`, or the text of a tokenizer.json.
        """
        text = tokenizer if isinstance(tokenizer, str) else tokenizer.to_str()
        self._tokenizer = tokenizers.Tokenizer.from_str(text)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._update_special_token_ids()

    @classmethod
    def from_directory(cls, directory):
        """The tokenizer of a checkpoint directory.

        Raises:
            algpt2.errors.InputError: if it cannot be read or has no end token.
        """
        tokenizer = load_tokenizer(directory)
        try:
            return cls(tokenizer.backend_tokenizer, end_token=tokenizer.eos_token or END_OF_TEXT)
        except ValueError as error:
            raise InputError(f"{Path(directory) / TOKENIZER_FILE}: {error}") from error

    def save_to_directory(self, directory):
        """Write tokenizer.json and tokenizer_config.json, as transformers reads them."""
        save_tokenizer(self._loaded(), directory, end_token=self.end_token)

    def _loaded(self):
        if self._tokenizer is None:
            raise ValueError("the tokenizer is empty: pass `tokenizer`, or load its assets")
        return self._tokenizer

    def tokenize(self, inputs):
        if self._use_tf_workflow():
            return self._tokenize_in_graph(inputs)
        single = isinstance(inputs, (str, bytes)) or np.ndim(inputs) == 0
        texts = [_to_str(text) for text in ([inputs] if single else inputs)]
        ids = [encoding.ids for encoding in self._loaded().encode_batch(texts)]
        return np.array(ids[0], dtype=self.compute_dtype) if single else ids

    def _tokenize_in_graph(self, inputs):
        inputs = tf.convert_to_tensor(inputs)
        self._loaded()

        def encode(texts):
            encodings = self._tokenizer.encode_batch([text.decode("utf-8") for text in texts])
            ids = [encoding.ids for encoding in encodings]
            return np.concatenate([*ids, []]).astype("int32"), np.array([len(row) for row in ids], "int64")

        flat, lengths = tf.numpy_function(encode, [tf.reshape(inputs, [-1])], (tf.int32, tf.int64), stateful=False)
        flat.set_shape([None])
        lengths.set_shape([None])
        if inputs.shape.rank == 0:
            return tf.cast(flat, self.compute_dtype)
        return tf.cast(tf.RaggedTensor.from_row_lengths(flat, lengths), self.compute_dtype)

    def detokenize(self, inputs):
        if isinstance(inputs, (tf.Tensor, tf.RaggedTensor)):
            inputs = inputs.to_list() if isinstance(inputs, tf.RaggedTensor) else inputs.numpy()
        if not len(inputs) or np.ndim(inputs[0]) == 0:
            return self._loaded().decode([int(i) for i in inputs], skip_special_tokens=False)
        return self._loaded().decode_batch([[int(i) for i in row] for row in inputs], skip_special_tokens=False)

    def get_vocabulary(self):
        return list(self._loaded().get_vocab())

    def vocabulary_size(self):
        return self._loaded().get_vocab_size()

    def id_to_token(self, id):
        token = self._loaded().id_to_token(id)
        if token is None:
            raise ValueError(f"id {id} is not in the vocabulary")
        return token

    def token_to_id(self, token):
        token_id = self._loaded().token_to_id(token)
        if token_id is None:
            raise ValueError(f"token {token!r} is not in the vocabulary")
        return token_id

    def save_assets(self, dir_path):
        Path(dir_path, TOKENIZER_FILE).write_text(self._loaded().to_str(), encoding="utf-8")

    def load_assets(self, dir_path):
        self.set_tokenizer(Path(dir_path, TOKENIZER_FILE).read_text(encoding="utf-8"))

    def get_config(self):
        return {**super().get_config(), "end_token": self.end_token}


@keras.saving.register_keras_serializable(package="algpt2")
class TFALGPT2CausalLMPreprocessor(CausalLMPreprocessor):
    """Strings to `(x, y, sample_weight)` for `fit`, and to and from token ids for `generate`.

    Args:
        tokenizer: `TFALGPT2Tokenizer`.
        sequence_length: int. The length that inputs are padded or cut to.
        add_start_token: bool. Whether to put the end-of-text token before every text. Off by default, so that
            `generate` continues what transformers would.
        add_end_token: bool. Whether to put it after every text in `fit`.
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
        self.packer = StartEndPacker(
            start_value=self.tokenizer.start_token_id if self.add_start_token else None,
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

    def generate_preprocess(self, x, sequence_length=None):
        inputs = super().generate_preprocess(x, sequence_length=sequence_length)
        if tf.executing_eagerly() and not np.asarray(inputs["padding_mask"]).any(axis=-1).all():
            raise ValueError("a prompt has no tokens; give some text, or build the preprocessor with add_start_token")
        return inputs


def _bool_to_int(array):
    if isinstance(array, tf.Tensor):
        return tf.cast(array, "int32") if array.dtype == tf.bool else array
    return array.astype("int32") if array.dtype == bool else array


def _to_str(text):
    if hasattr(text, "numpy"):
        text = text.numpy()
    return text.decode("utf-8") if isinstance(text, bytes) else str(text)
