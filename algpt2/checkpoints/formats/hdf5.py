"""Weights as HDF5, the format of Keras 3, and of the Keras 2 models that transformers had."""

import itertools
import math
import os

import h5py
import numpy as np

from algpt2.checkpoints.formats.lazy_tensor import DTYPES, LazyTensor, OpenFile, pieces
from algpt2.errors import InputError

# An upper bound of the bytes of groups and headers.
OVERHEAD = 1 << 20
# By the version of a superblock: where it says how many bytes an address has, and where its address of the end is.
SUPERBLOCKS = {0: (13, 40), 1: (13, 44), 2: (9, 28), 3: (9, 28)}
# HDF5 does not know bfloat16: Keras stores its bytes and says so in an attribute.
OPAQUE = np.dtype("V2")


def read_hdf5(path):
    """The arrays of an HDF5 file.

    Args:
        path: path.

    Returns:
        dict of str, the path of an array inside the file, to `LazyTensor`.

    Raises:
        InputError: if the file is missing or damaged.
    """
    tensors, extents = {}, []

    def visit(name, item):
        if not isinstance(name, str):
            raise ValueError(f"the name {name} is not text")
        if isinstance(item, h5py.Dataset):
            tensors[name] = _lazy_tensor(path, opened, name, item)
            extents.append((item.id.get_offset() or 0, item.nbytes, name))

    try:
        opened = OpenFile(path)
        with h5py.File(opened.file) as file:
            _check_end(opened.file, file.userblock_size)
            file.visititems(visit)
        extents = sorted(extent for extent in extents if extent[0])
        for (start, size, first), (following, _, second) in itertools.pairwise(extents):
            if start + size > following:
                raise ValueError(f"{first} and {second} overlap")
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Exception as error:  # h5py turns the errors of HDF5 into many kinds
        raise InputError(f"{path}: not readable as HDF5 ({error})") from error
    return tensors


def _check_end(file, start):
    """Raise a ValueError unless a file ends where its superblock, at `start`, says; HDF5 itself takes longer ones."""
    file.seek(start)
    superblock = file.read(64)
    size_at, end_at = SUPERBLOCKS[superblock[8]]
    end = int.from_bytes(superblock[end_at : end_at + superblock[size_at]], "little")
    size = os.fstat(file.fileno()).st_size
    if size != end:
        raise ValueError(f"the file has {size:,} bytes, its superblock says {end:,}")


def _lazy_tensor(path, opened, name, dataset):
    dtype = dataset.dtype
    if dtype == OPAQUE and dataset.attrs.get("dtype") == "bfloat16":
        dtype = DTYPES["bfloat16"]
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"the values of {name} are in another file")
    if not _is_whole(dataset):
        raise ValueError(f"the values of {name} were not all written")
    if (dataset.id.get_offset() or 0) + dataset.id.get_storage_size() > os.fstat(opened.file.fileno()).st_size:
        raise ValueError(f"{name} is longer than the file")

    def load():
        try:
            with h5py.File(opened.file) as file:
                return np.asarray(file[name][()]).view(dtype)
        except Exception as error:  # as above
            raise InputError(f"{path}: {name} is not readable ({error})") from error

    return LazyTensor(dataset.shape, dtype, load)


def _is_whole(dataset):
    """Whether all values are in the file; HDF5 would read missing ones as zeros."""
    if dataset.chunks is None:
        return dataset.id.get_storage_size() >= dataset.nbytes
    counts = (math.ceil(length / chunk) for length, chunk in zip(dataset.shape, dataset.chunks, strict=True))
    return dataset.id.get_num_chunks() == math.prod(counts)


def write_hdf5(path, weights, dtype, convert):
    """Write the arrays of an HDF5 file as Keras does, one piece at a time.

    Args:
        path: path.
        weights: dict of str, the path of an array inside the file, to numpy array or `LazyTensor`.
        dtype: str, one of `algpt2.checkpoints.formats.lazy_tensor.DTYPES`, that of all arrays in the file.
        convert: function from a name and a piece of that array to the piece in the dtype of the file.
    """
    stored = OPAQUE if dtype == "bfloat16" else DTYPES[dtype]
    size = sum(tensor.size for tensor in weights.values()) * stored.itemsize
    _reserve(path, size)
    # Since version 1.8 the headers of HDF5 have checksums; by default it writes older ones.
    with h5py.File(path, "w", libver=("v108", "v108")) as file:
        for name, tensor in weights.items():
            dataset = file.create_dataset(name, tensor.shape, stored)
            if dtype == "bfloat16":
                dataset.attrs["dtype"] = dtype
            start = 0
            for piece in pieces(tensor):
                dataset[start : start + len(piece)] = convert(name, piece).view(stored)
                start += len(piece)


def _reserve(path, size):
    # HDF5 crashes the process if the disk is full as it closes a file, so that the space is asked for before.
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size + OVERHEAD)
    os.remove(path)
