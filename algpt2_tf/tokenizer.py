"""A KerasHub tokenizer over tokenizer.json."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tokenizers
from keras_hub.tokenizers import Tokenizer

from algpt2.data.tokenizer import END_OF_TEXT, TOKENIZER_FILE, load_tokenizer, save_tokenizer
from algpt2.errors import InputError
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
        return cls.from_tokenizer(load_tokenizer(directory), directory)

    @classmethod
    def from_tokenizer(cls, tokenizer, source):
        """A tokenizer layer from a tokenizer of transformers.

        Args:
            tokenizer: `transformers.PreTrainedTokenizerFast`.
            source: path. The directory to name in an error.

        Raises:
            algpt2.errors.InputError: if it has no end token.
        """
        try:
            return cls(tokenizer.backend_tokenizer, end_token=tokenizer.eos_token or END_OF_TEXT)
        except ValueError as error:
            raise InputError(f"{Path(source) / TOKENIZER_FILE}: {error}") from error

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


def _to_str(text):
    if hasattr(text, "numpy"):
        text = text.numpy()
    return text.decode("utf-8") if isinstance(text, bytes) else str(text)
