"""Weights as safetensors, the format of transformers: headers are read at once, values when they are used."""

import json

import numpy as np
from safetensors import SafetensorError, safe_open

from algpt2.checkpoints.formats.lazy_tensor import DTYPES, LazyTensor, OpenFile, pieces
from algpt2.errors import InputError

NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
# Buffers that are not weights may be integers.
INTEGERS = {"I64": "i8", "I32": "i4", "I16": "i2", "I8": "i1", "U64": "u8", "U32": "u4", "U16": "u2", "U8": "u1"}
TYPES = {**{name: DTYPES[dtype] for dtype, name in NAMES.items()}, **INTEGERS, "BOOL": "?"}


def read_safetensors(path):
    """The tensors of a safetensors file.

    Args:
        path: path.

    Returns:
        dict of str to `algpt2.checkpoints.formats.lazy_tensor.LazyTensor`.

    Raises:
        InputError: if the file is missing or damaged, or holds a type that numpy does not know.
    """
    try:
        # The library checks that the tensors fill the file, without gaps and in the length of their shapes.
        with safe_open(path, framework="numpy"):
            opened = OpenFile(path)
        length = int.from_bytes(opened.file.read(8), "little")
        header = json.loads(opened.file.read(length))
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            offset = 8 + length + entry["data_offsets"][0]
            tensors[name] = _mapped(opened, offset, tuple(entry["shape"]), np.dtype(TYPES[entry["dtype"]]))
        return tensors
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except KeyError as error:
        raise InputError(f"{path}: holds tensors of type {error}; expected {', '.join(NAMES.values())}") from error
    except (OSError, SafetensorError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: not readable as safetensors ({error})") from error


def _mapped(opened, offset, shape, dtype):
    """A tensor that is mapped into memory while its values are used; changing them does not change the file."""
    return LazyTensor(shape, dtype, lambda: np.asarray(np.memmap(opened.file, dtype, "c", offset, shape)))


def write_safetensors(path, weights, dtype, convert):
    """Write a safetensors file, one piece of a tensor at a time.

    Args:
        path: path.
        weights: dict of str to numpy array or `LazyTensor`.
        dtype: str, one of `algpt2.checkpoints.formats.lazy_tensor.DTYPES`, that of all tensors in the file.
        convert: function from a name and a piece of that tensor to the piece in the dtype of the file.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in weights.items():
        start, end = end, end + tensor.size * DTYPES[dtype].itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    # The values start at a multiple of 8, as the format asks.
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in weights.items():
            for piece in pieces(tensor):
                file.write(convert(name, piece).reshape(-1).view("u1"))
