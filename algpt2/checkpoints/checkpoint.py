"""Checkpoints: opening those of any system, and writing weights as either framework reads them.

A path is opened once, into a `Checkpoint`; from there on the checkpoint is passed on, not its path.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from algpt2.checkpoints import CONFIG_FILE
from algpt2.checkpoints.casting import Casting, common_dtype
from algpt2.checkpoints.config_file import parse_config, read_stored_config
from algpt2.checkpoints.directories import find_checkpoint
from algpt2.checkpoints.formats import (
    FORMATS,
    KERAS,
    SAFETENSORS,
    Format,
    find_weights,
    read_weights,
    write_weights,
)
from algpt2.checkpoints.formats.lazy_tensor import equal
from algpt2.checkpoints.generation_config import read_generation_config
from algpt2.checkpoints.weight_maps import Dialect, find_dialect
from algpt2.checkpoints.weight_maps.own import PYTORCH, keras_dialect
from algpt2.checkpoints.weights import LANGUAGE_MODELS, architecture, check_weights, head_shapes
from algpt2.configuration import ALGPT2Config
from algpt2.data.encoding import require_end_token
from algpt2.data.tokenizer import (
    SPECIAL_TOKEN_FIELDS,
    fit_tokenizer,
    has_tokenizer,
    load_tokenizer,
    special_token_ids,
)
from algpt2.errors import InputError
from algpt2.files.atomic import require_whole
from algpt2.onnx import FILES as GRAPHS


@dataclass(frozen=True)
class Checkpoint:
    """What a directory holds: headers are read, values when they are asked for.

    Args:
        directory: `Path`.
        stored: dict, the content of config.json.
        config: `ALGPT2Config`, what it means.
        dialect: `algpt2.checkpoints.weight_maps.Dialect`.
        format: `algpt2.checkpoints.formats.Format`.
        path: `Path` of the weights' file, or of the index of its shards.
        weights: dict of str to `algpt2.checkpoints.formats.lazy_tensor.LazyTensor`, canonical, of the right shapes and
            types.
    """

    directory: Path
    stored: dict
    config: ALGPT2Config
    dialect: Dialect
    format: Format
    path: Path
    weights: dict

    @property
    def dtype(self):
        """str: the dtype that holds all weights."""
        return common_dtype(self.weights)

    @property
    def architecture(self):
        """str: the PyTorch class with the heads that are there."""
        return architecture(self.weights)

    @property
    def is_language_model(self):
        """bool: whether its model gives the logits of tokens, whatever other head it has."""
        return self.architecture in LANGUAGE_MODELS

    def require_language_model(self):
        """Raise an InputError if it has another head instead, so that what it says of tokens was not trained."""
        if not self.is_language_model:
            raise InputError(f"{self.directory}: is of {self.architecture}; expected a language model")

    def in_framework(self, framework):
        """The same checkpoint with the weights of a framework (str), if the directory has them; otherwise itself."""
        others = [found for found in find_weights(self.directory) if found[0].framework == framework]
        if self.format.framework == framework or not others:
            return self
        return _open_weights(self.directory, self.stored, self.config, *others[0])

    def without_heads(self):
        """The same checkpoint without the weights of other heads than the language model's."""
        heads = {name for shapes in head_shapes(self.config).values() for name in shapes}
        return replace(self, weights={name: self.weights[name] for name in self.weights if name not in heads})

    def read_weights(self, config=None):
        """The values of all weights, each read once.

        Args:
            config: `ALGPT2Config` that they must fit; by default the checkpoint's.

        Returns:
            dict of str to numpy array.

        Raises:
            InputError: if they do not fit or are not finite.
        """
        # Copies: a mapped file that is cut off later would crash the process.
        arrays = {name: np.array(np.asarray(tensor), order="C") for name, tensor in self.weights.items()}
        check_weights(config or self.config, arrays, source=self.path)
        return arrays

    @cached_property
    def tokenizer(self):
        """`transformers.PreTrainedTokenizerFast`, or `None`; an InputError if it does not fit the model."""
        if not has_tokenizer(self.directory):
            return None
        tokenizer = load_tokenizer(self.directory)
        fit_tokenizer(tokenizer, self.config, self.directory)
        return tokenizer

    def require_tokenizer(self):
        """The tokenizer; an InputError if there is none, or it has no token that ends a text."""
        return require_end_token(self.tokenizer or load_tokenizer(self.directory), self.directory)

    def model_config(self, **overrides):
        """The configuration of a model with these weights: its special tokens are those of the tokenizer.

        Args:
            **overrides: as in `algpt2.checkpoints.config_file.read_config`.

        Returns:
            `ALGPT2Config`.

        Raises:
            InputError: for a wrong value, or a tokenizer that does not fit.
        """
        tokens = special_token_ids(self.tokenizer) if self.tokenizer else {}
        config = parse_config(self.stored, self.directory / CONFIG_FILE, **{**tokens, **overrides})
        config.architectures = [self.architecture]
        return config

    def at_depth(self, n_layer):
        """The configuration of the same blocks at another depth.

        Args:
            n_layer: int; `None` means the checkpoint's own.

        Returns:
            `ALGPT2Config`.

        Raises:
            InputError: if the schedule cannot follow, or would need other blocks.
        """
        if n_layer is None:
            return self.config
        config = parse_config(self.stored, self.directory / CONFIG_FILE, n_layer=n_layer)
        if config.n_block != self.config.n_block:
            raise InputError(
                f"--depth {n_layer}: needs {config.n_block} blocks, {self.directory} has {self.config.n_block}"
            )
        return config

    def generation_config(self, config=None):
        """How `generate` continues texts by default.

        Args:
            config: `ALGPT2Config`, whose special tokens are taken; by default `model_config()`.

        Returns:
            `transformers.GenerationConfig`.

        Raises:
            InputError: if generation_config.json is damaged.
        """
        config = config or self.model_config()
        tokens = {name: getattr(config, name) for name in SPECIAL_TOKEN_FIELDS}
        return read_generation_config(self.directory, config, tokens)


def open_checkpoint(directory, framework="pytorch", weights=None, config=None):
    """Open the weights of a directory in any dialect, without loading them.

    Args:
        directory: path.
        framework: str, `"pytorch"` or `"tensorflow"`. Whose weights to take where a directory has both.
        weights: tuple of `algpt2.checkpoints.formats.Format` and `Path`. Which of the weights of the directory to take.
        config: `ALGPT2Config`, for a directory without config.json.

    Returns:
        `Checkpoint`.

    Raises:
        InputError: if a file is missing or damaged, or the tensors do not fit the configuration.
    """
    directory = Path(directory)
    if not directory.exists():
        raise InputError(f"{directory}: no such file or directory")
    if directory.is_dir():
        require_whole(directory)
    path = directory / CONFIG_FILE
    stored = config.to_dict() if config is not None and not path.exists() else read_stored_config(path)
    config = parse_config(stored, source=path)
    if stored.get("quantization_config"):
        raise InputError(f"{path}: quantization_config: the weights are quantized; give the model before that")
    found = [weights] if weights else sorted(find_weights(directory), key=lambda w: w[0].framework != framework)
    if not found:
        raise InputError(no_weights(directory))
    return _open_weights(directory, stored, config, *found[0])


def no_weights(directory):
    """str: that a directory, a `Path`, holds no weights."""
    if any((directory / name).is_file() for name in GRAPHS.values()):
        return f"{directory}: holds a graph for ONNX Runtime, no weights; `generate --runtime onnx` runs it"
    return f"{directory}: holds no weights; expected one of {', '.join(kind.file for kind in FORMATS)}"


def _open_weights(directory, stored, config, kind, path):
    try:
        dialect, tensors = find_dialect(kind.naming, stored, read_weights(kind, path))
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error
    canonical = dialect.to_canonical(config, tensors, source=path)
    if config.tie_word_embeddings and "lm_head.weight" in canonical:
        # Some writers store the tied matrix twice.
        if not equal(canonical.pop("lm_head.weight"), canonical["transformer.wte.weight"]):
            raise InputError(f"{path}: the head differs from the embedding, but tie_word_embeddings is true")
    return Checkpoint(directory, stored, config, dialect, kind, path, canonical)


def opened(source, framework="pytorch"):
    """A checkpoint, opened if it is not open yet.

    Args:
        source: `Checkpoint`; or str or path, a directory or the id of a hub repository.
        framework: str, as in `open_checkpoint`.

    Returns:
        `Checkpoint`.

    Raises:
        InputError: if it cannot be read.
    """
    return source if isinstance(source, Checkpoint) else open_checkpoint(find_checkpoint(source), framework)


def write_checkpoint_weights(directory, config, weights, framework, dtype=None, max_shard_size="5GB", convert=None):
    """Write the weights of ALGPT2 as one of the frameworks reads them.

    Args:
        directory: path of an existing directory.
        config: `ALGPT2Config`.
        weights: dict of str to numpy array or `algpt2.checkpoints.formats.lazy_tensor.LazyTensor`, canonical.
        framework: str, `"pytorch"` or `"tensorflow"`.
        dtype: str, one of `DTYPES`; by default the one that holds all weights.
        max_shard_size, convert: as in `algpt2.checkpoints.formats.write_weights`.
    """
    kind, dialect = (SAFETENSORS, PYTORCH) if framework == "pytorch" else (KERAS, keras_dialect(config))
    write_dialect(directory, kind, dialect, config, weights, dtype, max_shard_size, convert)


def write_dialect(directory, kind, dialect, config, weights, dtype=None, max_shard_size="5GB", convert=None):
    """Write canonical weights as another system reads them.

    Args:
        kind: `algpt2.checkpoints.formats.Format`.
        dialect: `algpt2.checkpoints.weight_maps.Dialect`.
        directory, config, weights, dtype, max_shard_size, convert: as in `write_checkpoint_weights`; `convert` gets the
            canonical names.
    """
    dtype = dtype or common_dtype(weights)
    convert = convert or Casting(dtype)
    ours = {name: canonical for canonical in weights for name in dialect.their_names(config, canonical)}
    tensors = dialect.from_canonical(config, weights)
    write_weights(kind, Path(directory), tensors, dtype, max_shard_size, lambda name, piece: convert(ours[name], piece))
