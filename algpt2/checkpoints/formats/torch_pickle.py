"""Weights as PyTorch's own `.bin` files, read by the rules of `torch.load(weights_only=True)` but without PyTorch.

Such a file holds a pickle, which names the tensors, and their values. The pickle is not unpickled: its few opcodes that
a dictionary of tensors needs are followed here, and anything else is refused, so that nothing in a file can run.
"""

import io
import math
import pickletools
import zipfile
import zlib
from dataclasses import dataclass

import numpy as np

from algpt2.checkpoints.formats.lazy_tensor import DTYPES, LazyTensor, OpenFile
from algpt2.errors import InputError

STORAGE_TYPES = {
    "torch DoubleStorage": DTYPES["float64"],
    "torch FloatStorage": DTYPES["float32"],
    "torch HalfStorage": DTYPES["float16"],
    "torch BFloat16Storage": DTYPES["bfloat16"],
    "torch LongStorage": np.dtype("int64"),
    "torch IntStorage": np.dtype("int32"),
    "torch ShortStorage": np.dtype("int16"),
    "torch CharStorage": np.dtype("int8"),
    "torch ByteStorage": np.dtype("uint8"),
    "torch BoolStorage": np.dtype("bool"),
}
# What the first of the pickles of a file from before PyTorch 1.6 holds.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


@dataclass(frozen=True)
class _Storage:
    """The values that one or more tensors are parts of."""

    key: str
    dtype: np.dtype
    size: int


@dataclass(frozen=True)
class _Tensor:
    """What the pickle says of a tensor: its storage, and where it lies there, in values."""

    storage: _Storage
    offset: int
    shape: tuple
    strides: tuple


def read_pytorch(path):
    """The tensors of a file that `torch.save` wrote from a state dict, in the format of PyTorch 1.6 or the one before.

    Args:
        path: path.

    Returns:
        dict of str to `LazyTensor`. Loading a tensor checks it against the checksum that the file has, if it has one.

    Raises:
        InputError: if the file is missing or damaged, or holds anything but tensors.

    References:
        https://docs.pytorch.org/docs/stable/notes/serialization.html
    """
    try:
        opened = OpenFile(path)
        is_zip = opened.file.read(4) == b"PK\3\4"
        opened.file.seek(0)
        tensors, places = _read_zip(opened.file) if is_zip else _read_legacy(opened.file)
        size = opened.file.seek(0, io.SEEK_END)
        if not isinstance(tensors, dict) or not all(isinstance(value, _Tensor) for value in tensors.values()):
            raise ValueError("it holds more than a dict of tensors")
        if any(offset + length > size for offset, length, _ in places.values()):
            raise ValueError("its end is missing")
        return {name: _lazy_tensor(path, opened, tensor, places) for name, tensor in tensors.items()}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except InputError:
        raise
    except Exception as error:  # pickletools and zipfile raise errors of many kinds
        raise InputError(f"{path}: not readable as tensors that torch.save wrote ({error})") from error


def _read_zip(file):
    """The tensors, and for each storage its offset in the file, its bytes and its checksum."""
    archive = zipfile.ZipFile(file)
    entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise ValueError("it is compressed")
    if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
        raise ValueError("its numbers are big-endian")
    tensors = _follow(io.BytesIO(archive.read(entries["data.pkl"])))
    places = {}
    for name, entry in entries.items():
        if name.startswith("data/"):
            # The local header of an entry has names and extra fields of its own lengths.
            file.seek(entry.header_offset + 26)
            lengths = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
            places[name.removeprefix("data/")] = (entry.header_offset + 30 + lengths, entry.file_size, entry.CRC)
    return tensors, places


def _read_legacy(file):
    if _follow(file) != LEGACY_MAGIC:
        raise ValueError("it is neither a zip file nor one of PyTorch before 1.6")
    _, system = _follow(file), _follow(file)
    if not system["little_endian"]:
        raise ValueError("its numbers are big-endian")
    tensors, keys = _follow(file), _follow(file)
    dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in tensors.values()}
    places, end = {}, file.tell()
    for key in keys:
        file.seek(end)
        size = int.from_bytes(file.read(8), "little") * dtypes[_text(key)].itemsize
        places[key] = (end + 8, size, None)
        end += 8 + size
    if end != file.seek(0, io.SEEK_END):
        raise ValueError(f"its tensors need {end} bytes, it has {file.tell()}")
    return tensors, places


def _lazy_tensor(path, opened, tensor, places):
    storage = tensor.storage
    offset, size, checksum = places[storage.key]
    numbers = (storage.size, tensor.offset, *tensor.shape, *tensor.strides)
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise ValueError("a tensor has a size that is not a number")
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if storage.size * storage.dtype.itemsize != size or (math.prod(tensor.shape) and last >= storage.size):
        raise ValueError("a tensor is larger than its values")

    def load():
        values = np.memmap(opened.file, "u1", "c", offset, (size,))
        if checksum is not None and zlib.crc32(values) != checksum:
            raise InputError(f"{path}: damaged (the checksum of {storage.key} is wrong); fetch it again")
        width = storage.dtype.itemsize
        strides = [stride * width for stride in tensor.strides]
        return np.ndarray(tensor.shape, storage.dtype, values, tensor.offset * width, strides)

    return LazyTensor(tensor.shape, storage.dtype, load)


def _rebuild_tensor(storage, offset, shape, strides, requires_grad, hooks, metadata=None):
    return _Tensor(storage, offset, shape, strides)


def _storage(kind, dtype, key, location, size, view=None):
    if kind != "storage" or view is not None:
        raise ValueError("it holds something else than tensors")
    return _Storage(_text(key), dtype, size)


def _dict(items=()):
    return {_text(key): value for key, value in items}


def _text(key):
    """The key of a dict: the hash of a tuple in a tuple in a tuple could hang, or crash the process."""
    if not isinstance(key, str):
        raise ValueError("it has a key that is not text")
    return key


# What a pickle may name and call.
GLOBALS = {
    **STORAGE_TYPES,
    "collections OrderedDict": _dict,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": lambda data, requires_grad, hooks: data,
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
NUMBERS_AND_TEXTS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}


def _follow(file):
    """The object that a pickle describes: numbers, texts, tuples, lists, dicts and tensors, nothing else."""
    stack, marks, memo = [], [], {}

    def after_mark():
        place = marks.pop()
        items = stack[place:]
        del stack[place:]
        return items

    for opcode, argument, _ in pickletools.genops(file):
        match opcode.name:
            case "PROTO":
                pass
            case name if name in NUMBERS_AND_TEXTS:
                stack.append(argument)
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE":
                stack.append(tuple(after_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "APPEND":
                value = stack.pop()
                stack[-1].append(value)
            case "APPENDS":
                items = after_mark()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][_text(key)] = value
            case "SETITEMS":
                items = after_mark()
                stack[-1].update(_dict(zip(items[::2], items[1::2], strict=True)))
            case "GLOBAL":
                if argument not in GLOBALS:
                    raise ValueError(f"it asks for {argument!r}, which no tensor needs")
                stack.append(GLOBALS[argument])
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if isinstance(function, np.dtype) or not callable(function):
                    raise ValueError("it calls what is not a function")
                stack.append(function(*arguments))
            case "BINPERSID":
                stack.append(_storage(*stack.pop()))
            case "BUILD":
                # The version numbers of the modules, which transformers leaves at a state dict.
                stack.pop()
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(f"it holds the opcode {name}, which no tensor needs")
