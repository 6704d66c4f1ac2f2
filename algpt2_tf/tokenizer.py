"""A KerasHub tokenizer over one of transformers."""

import contextlib
import copy
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tokenizers
from keras_hub.src.utils.preset_utils import ASSET_DIR, get_file
from keras_hub.tokenizers import Tokenizer

from algpt2.data.encoding import (
    END_OF_TEXT,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    check_vocabulary,
    encode_batch,
    start_ids,
    vocabulary_size,
)
from algpt2.data.tokenizer import fast_tokenizer, load_tokenizer, save_tokenizer
from algpt2.errors import InputError
from algpt2_tf.backbone import TFALGPT2Backbone

NESTED = "the input is to be a string or a list of strings, but there is {} in it"


@keras.saving.register_keras_serializable(package="algpt2")
class TFALGPT2Tokenizer(Tokenizer):
    """A tokenizer layer that gives the ids of a tokenizer of transformers, in and out of graph mode.

    They are those of `algpt2.data.encoding.encode`: what the tokenizer puts behind a text is left to the preprocessor.
    The work is done by the `tokenizers` library in both modes, so a tf.data pipeline runs it as a Python function.

    Args:
        tokenizer: `transformers.PreTrainedTokenizerFast`; or `tokenizers.Tokenizer` or the text of a tokenizer.json,
            whose end token takes all roles; or `None` if assets are loaded later.
        end_token: str. The token at the end of a document; by default that of the tokenizer. It also starts and pads
            texts where the tokenizer has no token for that.
        **kwargs: as in `keras_hub.tokenizers.Tokenizer`.

    Call arguments:
        inputs: str, list of str, or string tensor of rank 0 or 1; or of shape (n, 1), as columns of tables are.

    Returns:
        int32 token ids: a vector for one string; for several a list of lists, or a ragged tensor in graph mode.

    Raises:
        ValueError: if `end_token` is not in the vocabulary, or the input is nested more deeply.
    """

    backbone_cls = TFALGPT2Backbone

    def __init__(self, tokenizer=None, end_token=None, dtype="int32", **kwargs):
        super().__init__(dtype=dtype, **kwargs)
        self.file_assets = [TOKENIZER_FILE]
        self._tokenizer, self._start_ids = None, []
        # There is nothing to build, and `quantize` refuses models with unbuilt layers.
        self.built = True
        self._add_special_tokens(end_token or getattr(tokenizer, "eos_token", None) or END_OF_TEXT)
        if tokenizer is not None:
            self.set_tokenizer(tokenizer)

    def _add_special_tokens(self, end, start=None, pad=None):
        self._special_token_attrs = []
        for name, token in (("end_token", end), ("start_token", start or end), ("pad_token", pad or end)):
            self._add_special_token(token, name)

    def set_tokenizer(self, tokenizer):
        """Use another tokenizer.

        Args:
            tokenizer: `transformers.PreTrainedTokenizerFast`, `tokenizers.Tokenizer`, or the text of a tokenizer.json.

        Raises:
            ValueError: if it has no end token.
        """
        if isinstance(tokenizer, str):
            tokenizer = tokenizers.Tokenizer.from_str(tokenizer)
        if self.end_token not in tokenizer.get_vocab():
            raise ValueError(f"the end token {self.end_token!r} is not in the vocabulary; name another as end_token")
        if isinstance(tokenizer, tokenizers.Tokenizer):
            tokenizer = fast_tokenizer(tokenizer, self.end_token)
        elif tokenizer.eos_token != self.end_token:
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.eos_token = self.end_token
        self._tokenizer, self._start_ids = tokenizer, start_ids(tokenizer)
        self._add_special_tokens(self.end_token, tokenizer.bos_token, tokenizer.pad_token)

    def require_size_of(self, config):
        """Raise an `algpt2.errors.InputError` unless the tokenizer is of the size of a model.

        Args:
            config: `ALGPT2Config`.
        """
        check_vocabulary(self._loaded(), config, "the preprocessor")

    def name_pad_token(self):
        """Have the tokenizer of transformers, too, pad with the token that this one pads with.

        Returns:
            int, its id.
        """
        self._loaded().pad_token = self.pad_token
        return self.pad_token_id

    @property
    def adds_start(self):
        """bool: whether the tokenizer itself puts something before every text."""
        return bool(self._start_ids)

    @classmethod
    def from_directory(cls, directory):
        """The tokenizer of a checkpoint directory that is no preset.

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
            return cls(tokenizer)
        except ValueError as error:
            raise InputError(f"{Path(source) / TOKENIZER_FILE}: {error}") from error

    def save_to_directory(self, directory, max_length=None):
        """Write the files that transformers reads; see `algpt2.data.tokenizer.save_tokenizer`.

        Args:
            directory: path.
            max_length: int. The tokens that the model takes, for the tokenizer to say; `None` means any number.
        """
        tokenizer = copy.copy(self._loaded())
        tokenizer.model_max_length = min(tokenizer.model_max_length, max_length or tokenizer.model_max_length)
        save_tokenizer(tokenizer, directory)

    def _loaded(self):
        if self._tokenizer is None:
            raise ValueError("the tokenizer is empty: pass `tokenizer`, or load its assets")
        return self._tokenizer

    def tokenize(self, inputs):
        if self._use_tf_workflow():
            return self._tokenize_in_graph(inputs)
        single = isinstance(inputs, (str, bytes)) or getattr(inputs, "shape", None) == ()
        ids = self._encode([_to_str(text) for text in ([inputs] if single else inputs)])
        return np.array(ids[0], dtype=self.compute_dtype) if single else ids

    def _encode(self, texts):
        return [[*self._start_ids, *ids] for ids in encode_batch(self._loaded(), texts)]

    def _tokenize_in_graph(self, inputs):
        inputs = tf.convert_to_tensor(inputs)
        self._loaded()
        if (inputs.shape.rank or 0) > 1 and inputs.shape[1:] != (1,):
            raise ValueError(NESTED.format(f"strings of shape {inputs.shape}"))

        def encode(texts):
            ids = self._encode([text.decode("utf-8") for text in texts])
            return np.concatenate([*ids, []]).astype("int32"), np.array([len(row) for row in ids], "int64")

        flat, lengths = tf.numpy_function(encode, [tf.reshape(inputs, [-1])], (tf.int32, tf.int64), stateful=False)
        flat.set_shape([None])
        lengths.set_shape([None])
        if inputs.shape.rank == 0:
            return tf.cast(flat, self.compute_dtype)
        return tf.cast(tf.RaggedTensor.from_row_lengths(flat, lengths), self.compute_dtype)

    def detokenize(self, inputs):
        if tf.is_tensor(inputs):
            if not tf.executing_eagerly():
                return self._detokenize_in_graph(inputs)
            inputs = inputs.to_list() if isinstance(inputs, tf.RaggedTensor) else inputs.numpy()
        if not hasattr(inputs, "__len__") or getattr(inputs, "shape", None) == ():
            inputs = [inputs]
        single = not len(inputs) or np.ndim(inputs[0]) == 0
        texts = self._decode([inputs] if single else inputs)
        return texts[0] if single else texts

    def _decode(self, rows):
        rows = [[int(i) for i in row] for row in rows]
        return self._loaded().backend_tokenizer.decode_batch(rows, skip_special_tokens=False)

    def _detokenize_in_graph(self, inputs):
        rank = inputs.shape.rank
        rows = inputs if rank == 2 else tf.reshape(inputs, (1, -1))
        if not isinstance(rows, tf.RaggedTensor):
            rows = tf.RaggedTensor.from_tensor(rows)

        def decode(ids, lengths):
            texts = self._decode(np.split(ids, np.cumsum(lengths)[:-1]))
            return np.array([text.encode() for text in texts], dtype=object)

        texts = tf.numpy_function(decode, [rows.values, rows.row_lengths()], tf.string, stateful=False)
        texts.set_shape([inputs.shape[0] if rank == 2 else 1])
        return texts if rank == 2 else texts[0]

    def get_vocabulary(self):
        return list(self._loaded().get_vocab())

    def vocabulary_size(self):
        return vocabulary_size(self._loaded())

    def id_to_token(self, id):
        token = self._loaded().backend_tokenizer.id_to_token(id)
        if token is None:
            raise ValueError(f"id {id} is not in the vocabulary")
        return token

    def token_to_id(self, token):
        token_id = self._loaded().backend_tokenizer.token_to_id(token)
        if token_id is None:
            raise ValueError(f"token {token!r} is not in the vocabulary")
        return token_id

    def save_assets(self, dir_path):
        save_tokenizer(self._loaded(), dir_path)

    def load_assets(self, dir_path):
        # Earlier versions kept tokenizer.json alone.
        if Path(dir_path, TOKENIZER_CONFIG_FILE).exists():
            self.set_tokenizer(load_tokenizer(dir_path))
        else:
            self.set_tokenizer(Path(dir_path, TOKENIZER_FILE).read_text(encoding="utf-8"))

    def load_preset_assets(self, preset):
        with contextlib.suppress(FileNotFoundError):
            get_file(preset, f"{ASSET_DIR}/{Path(self.config_file).stem}/{TOKENIZER_CONFIG_FILE}")
        super().load_preset_assets(preset)

    def get_config(self):
        return {**super().get_config(), "end_token": self.end_token}


def _to_str(text):
    found = text.numpy() if hasattr(text, "numpy") else text
    if isinstance(found, (list, tuple, np.ndarray)) and len(found) == 1:
        [found] = found
    if not isinstance(found, (str, bytes)):
        raise ValueError(NESTED.format(repr(text)[:80]))
    return found.decode("utf-8") if isinstance(found, bytes) else str(found)


# KerasHub names its models without a framework.
ALGPT2Tokenizer = TFALGPT2Tokenizer
