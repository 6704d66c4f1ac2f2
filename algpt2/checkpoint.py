"""Checkpoint directories: finding and opening those of any dialect, and writing files all at once or not at all."""

import contextlib
import itertools
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)

from algpt2.configuration import ALGPT2Config
from algpt2.dialects import Dialect, configuration, find_dialect
from algpt2.dialects.algpt2 import PYTORCH, keras_dialect
from algpt2.errors import InputError
from algpt2.formats import FORMATS, KERAS, SAFETENSORS, Format, find_weights, read_json, read_weights, write_weights
from algpt2.formats.tensors import DTYPES, equal
from algpt2.weights import Casting, check_weights, common_dtype

CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
TOKENIZER_FILE = "tokenizer.json"
MODEL_CARD = "README.md"
# What a checkpoint in any dialect has besides its weights.
METADATA_FILES = (
    *(CONFIG_FILE, GENERATION_FILE, MODEL_CARD),
    *(TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "assets/tokenizer/vocabulary.json", "assets/tokenizer/merges.txt"),
    *("metadata.json", "task.json", "preprocessor.json"),
)
METADATA_PATTERNS = ("*.json", "*.txt", "*.md", "assets/tokenizer/*")


def find_checkpoint(name_or_path, **hub_options):
    """The local directory of a checkpoint, downloaded from the Hugging Face hub if it is not a directory.

    Args:
        name_or_path: str or path. A directory, or the id of a hub repository.
        **hub_options: `revision`, `token`, `cache_dir`, ... of `huggingface_hub.snapshot_download`.

    Raises:
        InputError: if there is neither.
    """
    if os.path.isdir(name_or_path):
        return Path(name_or_path)
    name = str(name_or_path)
    try:
        try:
            access = {key: hub_options[key] for key in ("revision", "token") if key in hub_options}
            files = set(HfApi().list_repo_files(name, **access))
            # Of several copies of the weights one is enough, which both frameworks read.
            kinds = [kind for kind in FORMATS if {kind.file, kind.index} & files][:1]
        except (HTTPError, OSError):
            # What was downloaded before may still be there.
            kinds = FORMATS
        weights = [f"*.{kind.file.rpartition('.')[2]}" for kind in kinds]
        return Path(snapshot_download(name, allow_patterns=[*METADATA_PATTERNS, *weights], **hub_options))
    except (HFValidationError, HTTPError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"{name_or_path}: no such directory, and not to be had from the Hugging Face hub "
            f"({type(error).__name__}); give a directory that holds {CONFIG_FILE}"
        ) from error


def read_config(path, **overrides):
    """The configuration of a checkpoint, whichever dialect of `algpt2.dialects` it is in.

    Args:
        path: path of a directory that holds config.json, or of such a file.
        **overrides: fields of `ALGPT2Config` to set otherwise.

    Returns:
        `ALGPT2Config`.

    Raises:
        InputError: if the file is missing or wrong.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    if path.is_dir():
        path = path / CONFIG_FILE
    stored = read_json(path)
    for key in ("dtype", "torch_dtype"):
        if stored.get(key) is not None and (not isinstance(stored[key], str) or stored[key] not in DTYPES):
            raise InputError(f"{path}: {key} is {stored[key]!r}; expected one of {', '.join(DTYPES)}")
    try:
        config = configuration(stored)
        return ALGPT2Config.from_dict(config.to_dict(), **overrides) if overrides else config
    except (StrictDataclassError, ValueError, TypeError, AttributeError, OverflowError) as error:
        # Some of these messages have several lines.
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a directory, not yet loaded.

    Args:
        directory: `Path`.
        config: `ALGPT2Config`, as stored.
        dialect: `algpt2.dialects.Dialect`.
        format: `algpt2.formats.Format`.
        path: `Path` of the weights' file, or of the index of its shards.
        weights: dict of str to `algpt2.formats.tensors.LazyTensor`, canonical, of the right shapes and types.
    """

    directory: Path
    config: ALGPT2Config
    dialect: Dialect
    format: Format
    path: Path
    weights: dict

    @property
    def dtype(self):
        """str: the dtype that holds all weights."""
        return common_dtype(self.weights)


def open_checkpoint(directory, framework="pytorch", weights=None):
    """Open the weights of a directory in any dialect, without loading them.

    Args:
        directory: path.
        framework: str, `"pytorch"` or `"tensorflow"`. Whose weights to take where a directory has both.
        weights: tuple of `algpt2.formats.Format` and `Path`. Which of the weights of the directory to take.

    Returns:
        `Checkpoint`.

    Raises:
        InputError: if a file is missing or damaged, or the tensors do not fit the configuration.
    """
    directory = Path(directory)
    config = read_config(directory)
    found = [weights] if weights else sorted(find_weights(directory), key=lambda w: w[0].framework != framework)
    if not found:
        raise InputError(f"{directory}: holds no weights; expected one of {', '.join(kind.file for kind in FORMATS)}")
    kind, path = found[0]
    stored, tensors = read_json(directory / CONFIG_FILE), read_weights(kind, path)
    try:
        dialect, tensors = find_dialect(kind.naming, stored, tensors)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    weights = dialect.to_canonical(config, tensors, source=path)
    if config.tie_word_embeddings and "lm_head.weight" in weights:
        # Some writers store the tied matrix twice.
        if not equal(weights.pop("lm_head.weight"), weights["transformer.wte.weight"]):
            raise InputError(f"{path}: the head differs from the embedding, but tie_word_embeddings is true")
    return Checkpoint(directory, config, dialect, kind, path, weights)


def read_checkpoint(directory, framework="pytorch"):
    """The configuration and the canonical weights of a directory in any dialect.

    Args:
        directory, framework: as in `open_checkpoint`.

    Returns:
        tuple of (`ALGPT2Config`, dict of str to numpy array).

    Raises:
        InputError: if a file is missing or damaged, or the tensors do not fit the configuration or are not finite.
    """
    checkpoint = open_checkpoint(directory, framework)
    check_weights(checkpoint.config, checkpoint.weights, source=checkpoint.path)
    return checkpoint.config, {name: np.array(tensor) for name, tensor in checkpoint.weights.items()}


def write_checkpoint_weights(directory, config, weights, framework, dtype=None, max_shard_size="5GB", convert=None):
    """Write the weights of ALGPT2 as one of the frameworks reads them.

    Args:
        directory: path of an existing directory.
        config: `ALGPT2Config`.
        weights: dict of str to numpy array or `algpt2.formats.tensors.LazyTensor`, canonical.
        framework: str, `"pytorch"` or `"tensorflow"`.
        dtype: str, one of `DTYPES`; by default the one that holds all weights.
        max_shard_size, convert: as in `algpt2.formats.write_weights`.
    """
    kind, dialect = (SAFETENSORS, PYTORCH) if framework == "pytorch" else (KERAS, keras_dialect(config))
    write_dialect(directory, kind, dialect, config, weights, dtype, max_shard_size, convert)


def write_dialect(directory, kind, dialect, config, weights, dtype=None, max_shard_size="5GB", convert=None):
    """Write canonical weights as another system reads them.

    Args:
        kind: `algpt2.formats.Format`.
        dialect: `algpt2.dialects.Dialect`.
        directory, config, weights, dtype, max_shard_size, convert: as in `write_checkpoint_weights`; `convert` gets the
            canonical names.
    """
    dtype = dtype or common_dtype(weights)
    convert = convert or Casting(dtype)
    ours = {name: canonical for canonical in weights for name in dialect.their_names(config, canonical)}
    tensors = dialect.from_canonical(config, weights)
    write_weights(kind, Path(directory), tensors, dtype, max_shard_size, lambda name, piece: convert(ours[name], piece))


@contextlib.contextmanager
def files_replaced_in(directory, stale=()):
    """A temporary directory whose files move into `directory` only if the block succeeds.

    Args:
        directory: path; made if it is not there. Its other files stay as they are.
        stale: iterable of str, names of files and of empty directories, with wildcards. What of `directory` to remove
            if it is not replaced.

    Raises:
        InputError: if the directory cannot be written.

    Example:
        >>> with files_replaced_in("runs/example") as temporary:
        ...     _ = (temporary / "note.txt").write_text("whole or not at all")
    """
    directory = Path(directory)
    is_new = not directory.is_dir()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Inside a directory that is there, which may be on a disk of its own.
        place = directory.parent if is_new else directory
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=place))
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror})") from error
    try:
        yield temporary
        share_files(temporary)
        if is_new:
            # It appears with all its files at once.
            os.replace(temporary, directory)
            return
        files = [path.relative_to(temporary) for path in temporary.rglob("*") if not path.is_dir()]
        for file in files:
            _require_place(directory, file)
        for file in files:
            (directory / file.parent).mkdir(parents=True, exist_ok=True)
            os.replace(temporary / file, directory / file)
        for path in sorted(itertools.chain.from_iterable(map(directory.glob, stale)), reverse=True):
            if not path.is_dir():
                if path.relative_to(directory) not in files:
                    path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _require_place(directory, file):
    target = directory / file
    if target.is_dir():
        raise InputError(f"{target}: is a directory, where a file is to be written")
    for parent in target.parents[: len(file.parents) - 1]:
        if parent.exists() and not parent.is_dir():
            raise InputError(f"{parent}: is a file, where a directory is to be written")


def share_files(directory):
    """Give a directory and its files the permissions that new ones have; some are made for their owner alone.

    Args:
        directory: path.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in (Path(directory), *Path(directory).rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
