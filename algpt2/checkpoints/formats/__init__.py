"""The files that hold weights: which there are, and how they are read and written, whole or in shards with an index."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

from huggingface_hub import split_state_dict_into_shards_factory

from algpt2.checkpoints.formats.hdf5 import read_hdf5, write_hdf5
from algpt2.checkpoints.formats.lazy_tensor import DTYPES
from algpt2.checkpoints.formats.pytorch import read_pytorch
from algpt2.checkpoints.formats.safetensors import read_safetensors, write_safetensors
from algpt2.errors import InputError
from algpt2.files.reading import INDEX_BYTES, read_json, require_ordinary


@dataclass(frozen=True)
class Format:
    """One way to keep the weights of a model in files.

    Args:
        naming: str. Whose names the tensors have: `"pytorch"`, `"keras"` or `"keras 2"`.
        file: str. The name of the file.
        index: str. The name of the file that names the shards instead.
        read: function from the path of a file to a dict of str to `LazyTensor`.
        write: function as `algpt2.checkpoints.formats.safetensors.write_safetensors`; `None` if it is only read.
        shard: str. The names of shards, with `number` and `count`.
    """

    naming: str
    file: str
    index: str | None
    read: Callable
    write: Callable | None = None
    shard: str | None = None

    @property
    def framework(self):
        """str: `"pytorch"` or `"tensorflow"`."""
        return "pytorch" if self.naming == "pytorch" else "tensorflow"

    @property
    def patterns(self):
        """tuple of str: the names of all its files, with wildcards."""
        shards = self.shard and re.sub(r"\{.*?\}", "[0-9]*", self.shard)
        return tuple(filter(None, (self.file, self.index, shards)))

    def index_key(self, tensor):
        """str: the key of a tensor in an index file; Keras has one key for a group of tensors."""
        return f"/{tensor.rpartition('/')[0]}" if self.naming == "keras" else tensor


SAFETENSORS = Format(
    naming="pytorch",
    file="model.safetensors",
    index="model.safetensors.index.json",
    read=read_safetensors,
    write=write_safetensors,
    shard="model-{number:05}-of-{count:05}.safetensors",
)
PYTORCH = Format(
    naming="pytorch",
    file="pytorch_model.bin",
    index="pytorch_model.bin.index.json",
    read=read_pytorch,
    shard="pytorch_model-{number:05}-of-{count:05}.bin",
)
KERAS = Format(
    naming="keras",
    file="model.weights.h5",
    index="model.weights.json",
    read=read_hdf5,
    write=write_hdf5,
    shard="model_{number:05}.weights.h5",
)
KERAS_2 = Format(naming="keras 2", file="tf_model.h5", index=None, read=read_hdf5)
FORMATS = (SAFETENSORS, PYTORCH, KERAS, KERAS_2)


def find_weights(directory):
    """The weights of a directory, in the order in which they are to be preferred.

    Args:
        directory: `Path`.

    Returns:
        list of tuple of `Format` and the `Path` of its file or index.
    """
    found = [(kind, directory / name) for kind in FORMATS for name in (kind.file, kind.index) if name]
    return [(kind, path) for kind, path in found if path.is_file()]


def weight_files(kind, path):
    """The files of weights: the one that holds them, or an index and its shards.

    Args:
        kind: `Format`.
        path: `Path` of the file or of the index.

    Returns:
        list of `Path`.

    Raises:
        InputError: if the index cannot be read or names a file that is not beside it.
    """
    return [path, *_read_index(path)[1]] if path.name == kind.index else [path]


def read_weights(kind, path):
    """The tensors of a file, or of all shards that an index names.

    Args:
        kind: `Format`.
        path: `Path` of the file or of the index.

    Returns:
        dict of str to `LazyTensor`, by the names that they have there.

    Raises:
        InputError: if a file is missing or damaged, or the index and the shards disagree.
    """
    if path.name != kind.index:
        return kind.read(path)
    weight_map, shards = _read_index(path)
    tensors = {}
    for shard in shards:
        found = kind.read(shard)
        keys = {kind.index_key(name) for name in found}
        expected = {key for key, files in weight_map.items() if shard.name in files}
        for key in sorted(keys ^ expected):
            raise InputError(f"{path}: {shard.name} and the index disagree on tensor {key}")
        tensors |= found
    return tensors


def write_weights(kind, directory, weights, dtype, max_shard_size, convert):
    """Write tensors to one file, or to shards and an index where they are larger than a shard.

    Args:
        kind: `Format`.
        directory: `Path` of an existing directory.
        weights: dict of str to numpy array or `LazyTensor`, by the names that they shall have there.
        dtype: str, one of `algpt2.checkpoints.formats.lazy_tensor.DTYPES`, that of the files.
        max_shard_size: int in bytes, or str such as `"5GB"`.
        convert: function from a name and a piece of that tensor to the piece in that dtype.
    """
    split = split_state_dict_into_shards_factory(
        weights,
        get_storage_size=lambda tensor: tensor.size * DTYPES[dtype].itemsize,
        filename_pattern="{suffix}",
        max_shard_size=max_shard_size,
    )
    groups = list(split.filename_to_tensors.values())
    if len(groups) == 1:
        kind.write(directory / kind.file, weights, dtype, convert)
        return
    # Keras counts its shards from 0, transformers from 1.
    first = 0 if kind is KERAS else 1
    weight_map = {}
    for number, names in enumerate(groups, start=first):
        file = kind.shard.format(number=number, count=len(groups))
        kind.write(directory / file, {name: weights[name] for name in names}, dtype, convert)
        for name in names:
            files = weight_map.setdefault(kind.index_key(name), [])
            if file not in files:
                files.append(file)
    index = {
        "metadata": {"total_size": split.metadata["total_size"]},
        "weight_map": {key: files[0] if len(files) == 1 else files for key, files in weight_map.items()},
    }
    (directory / kind.index).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _read_index(path):
    """The names of files by the key of each tensor, and the paths of the files in order."""
    stored = read_json(path, INDEX_BYTES).get("weight_map")
    weight_map = {}
    for key, files in stored.items() if isinstance(stored, dict) else ():
        weight_map[key] = [files] if isinstance(files, str) else files
    if not weight_map or not all(
        isinstance(files, list) and all(isinstance(file, str) for file in files) for files in weight_map.values()
    ):
        raise InputError(f"{path}: weight_map must map tensor names to file names")
    names = sorted({file for files in weight_map.values() for file in files})
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise InputError(f"{path}: {name!r} must be a file name in the same directory")
    shards = [path.parent / name for name in names]
    for shard in shards:
        require_ordinary(shard)
    return weight_map, shards
