"""Checkpoint directories: finding, reading and writing config.json and the safetensors files, atomically."""

import contextlib
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from huggingface_hub import snapshot_download, split_state_dict_into_shards_factory
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    StrictDataclassError,
)
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from algpt2.dialects import DIALECTS
from algpt2.errors import InputError
from algpt2.weights import DTYPES, check_weights

CONFIG_FILE = "config.json"
SAFETENSORS_FILE = "model.safetensors"
SAFETENSORS_INDEX_FILE = "model.safetensors.index.json"
KERAS_WEIGHTS_FILE = "model.weights.h5"
TOKENIZER_FILE = "tokenizer.json"
METADATA_PATTERNS = ("*.json", "*.txt", "*.md")


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
    patterns = [*METADATA_PATTERNS, "*.safetensors", KERAS_WEIGHTS_FILE]
    try:
        return Path(snapshot_download(str(name_or_path), allow_patterns=patterns, **hub_options))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
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
    stored = _read_json(path)
    model_type = stored.get("model_type")
    if not isinstance(model_type, str) or model_type not in DIALECTS:
        raise InputError(f"{path}: model_type is {model_type!r}; expected one of {', '.join(DIALECTS)}")
    for key in ("dtype", "torch_dtype"):
        if stored.get(key) is not None and (not isinstance(stored[key], str) or stored[key] not in DTYPES):
            raise InputError(f"{path}: {key} is {stored[key]!r}; expected one of {', '.join(DTYPES)}")
    try:
        config = DIALECTS[model_type].config(stored)
        return type(config).from_dict(config.to_dict(), **overrides) if overrides else config
    except (StrictDataclassError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: {error}") from error


def read_checkpoint(directory):
    """The configuration and the canonical weights of a directory with safetensors files.

    Args:
        directory: path.

    Returns:
        tuple of (`ALGPT2Config`, dict of str to numpy array).

    Raises:
        InputError: if a file is missing or damaged, or the tensors do not fit the configuration.
    """
    directory = Path(directory)
    config = read_config(directory)
    dialect = DIALECTS[_read_json(directory / CONFIG_FILE)["model_type"]]
    weights = dialect.to_canonical(read_safetensors(directory))
    if config.tie_word_embeddings and "lm_head.weight" in weights:
        # Some writers store the tied matrix twice.
        if not np.array_equal(weights["lm_head.weight"], weights.get("transformer.wte.weight")):
            raise InputError(
                f"{directory}: lm_head.weight differs from transformer.wte.weight, but tie_word_embeddings is true"
            )
        del weights["lm_head.weight"]
    check_weights(config, weights, source=directory)
    return config, weights


def read_safetensors(directory):
    """All tensors of `model.safetensors`, or of the shards that its index file names, as stored.

    Args:
        directory: path.

    Returns:
        dict of str to numpy array.

    Raises:
        InputError: if a file or a tensor is missing, a file is damaged, or the index is wrong.
    """
    directory = Path(directory)
    if (directory / SAFETENSORS_FILE).is_file():
        return _read_safetensors_file(directory / SAFETENSORS_FILE)
    index_path = directory / SAFETENSORS_INDEX_FILE
    if not index_path.is_file():
        if (directory / KERAS_WEIGHTS_FILE).is_file():
            raise InputError(f"{directory}: holds TensorFlow weights only; run python -m convert tf2pt {directory}")
        raise InputError(f"{directory}: neither {SAFETENSORS_FILE} nor {SAFETENSORS_INDEX_FILE} is there")
    weight_map = _read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise InputError(f"{index_path}: weight_map must map tensor names to file names")
    weights = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise InputError(f"{index_path}: {file!r} must be a file name in the same directory")
        shard = _read_safetensors_file(directory / file)
        for name in sorted(set(shard) | {name for name, holder in weight_map.items() if holder == file}):
            if name not in shard or weight_map.get(name) != file:
                raise InputError(f"{index_path}: {file} and the index disagree on tensor {name}")
        weights.update(shard)
    return weights


def write_safetensors(directory, weights, max_shard_size="5GB"):
    """Write weights as transformers does: one file, or shards and an index where they are larger than a shard.

    Args:
        directory: path of an existing directory.
        weights: dict of str to numpy array.
        max_shard_size: int in bytes, or str such as `"5GB"`.
    """
    directory = Path(directory)
    split = split_state_dict_into_shards_factory(
        weights,
        get_storage_size=lambda tensor: tensor.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    for file, names in split.filename_to_tensors.items():
        tensors = {name: np.ascontiguousarray(weights[name]) for name in names}
        save_file(tensors, directory / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (directory / SAFETENSORS_INDEX_FILE).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


@contextlib.contextmanager
def files_replaced_in(directory):
    """A temporary directory whose files move into `directory` only if the block succeeds.

    Args:
        directory: path; made if it is not there. Its other files stay as they are.

    Raises:
        InputError: if the directory cannot be written.

    Example:
        >>> with files_replaced_in("runs/example") as temporary:
        ...     _ = (temporary / "note.txt").write_text("whole or not at all")
    """
    directory = Path(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Inside a directory that is there, which may be on a disk of its own.
        place = directory if directory.is_dir() else directory.parent
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=place))
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror})") from error
    try:
        yield temporary
        directory.mkdir(exist_ok=True)
        share_files(temporary)
        for file in sorted(temporary.iterdir()):
            os.replace(file, directory / file.name)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def share_files(directory):
    """Give files the permissions that new files have; safetensors makes them for their owner alone.

    Args:
        directory: path.
    """
    mask = os.umask(0)
    os.umask(mask)
    for file in Path(directory).iterdir():
        if file.is_file():
            file.chmod(0o666 & ~mask)


def _read_json(path):
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _read_safetensors_file(path):
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, SafetensorError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: not readable as safetensors ({error})") from error
