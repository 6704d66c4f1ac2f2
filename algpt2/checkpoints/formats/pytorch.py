"""Weights as PyTorch's own `.bin` files, read by it with `weights_only=True`, so that nothing in them can run."""

import functools
import os
import warnings
import zipfile

from algpt2.checkpoints.formats.lazy_tensor import DTYPES, LazyTensor
from algpt2.errors import InputError

# The bytes of the record that ends a zip file, before its comment.
END_RECORD = 22


def read_pytorch(path):
    """The tensors of a file that `torch.save` wrote from a state dict, in the format of PyTorch 1.6 or the one before.

    Args:
        path: path.

    Returns:
        dict of str to `LazyTensor`. Loading one checks the file against its checksums, if it has some.

    Raises:
        InputError: if the file is missing or damaged or holds anything but tensors, or PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: only PyTorch reads such files, and it is not installed; pip install torch, or save the model as "
            "safetensors"
        ) from error
    try:
        with warnings.catch_warnings():
            # The warnings are about pickles that are refused anyway.
            warnings.simplefilter("ignore")
            if zipfile.is_zipfile(path):
                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            else:
                tensors = _load_sequence(path)
        if not isinstance(tensors, dict) or not all(isinstance(key, str) for key in tensors):
            raise ValueError("it holds something else than a dict of tensors")
        check = functools.cache(lambda: check_archive(path))
        return {name: _lazy_tensor(name, tensor, check) for name, tensor in tensors.items()}
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Exception as error:  # torch raises errors of many kinds
        raise InputError(f"{path}: not readable as tensors that torch.save wrote ({load_reason(error)})") from error


def _load_sequence(path):
    """What a file in the format before PyTorch 1.6 holds: pickles and values, one after the other."""
    import torch

    with open(path, "rb") as file:
        content = torch.load(file, map_location="cpu", weights_only=True)
        if file.read(1):
            raise ValueError("it goes on behind its last tensor")
    return content


def _lazy_tensor(name, tensor, check):
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided or tensor.device.type != "cpu":
        raise ValueError(f"{name} is not a tensor of numbers")
    # numpy does not know bfloat16.
    stored = tensor.detach().view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor.detach()
    array = stored.numpy()
    dtype = DTYPES["bfloat16"] if tensor.dtype == torch.bfloat16 else array.dtype

    def load():
        check()
        return array.view(dtype)

    return LazyTensor(array.shape, dtype, load)


def check_archive(path):
    """Raise an InputError if a zip file, such as `torch.save` writes, does not match its checksums or its size.

    Args:
        path: path of any file; one that is not a zip file has none.
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            archive.fp.seek(-END_RECORD - len(archive.comment), os.SEEK_END)
            if archive.fp.read(4) != b"PK\5\6":
                raise ValueError("it goes on behind its end")
    except Exception as error:  # zipfile and zlib raise errors of many kinds
        raise InputError(f"{path}: damaged ({error}); fetch it again") from error
    if damaged:
        raise InputError(f"{path}: damaged (the checksum of {damaged} is wrong); fetch it again")


def load_reason(error):
    """What an error of `torch.load` says, without its advice.

    Args:
        error: exception.

    Returns:
        str of one line.

    Example:
        >>> load_reason(ValueError("Weights only load failed.\\n\\nUnsupported operand 149\\n\\nCheck the docs."))
        'Unsupported operand 149'
    """
    paragraphs = [" ".join(paragraph.split()) for paragraph in str(error).split("\n\n") if paragraph.strip()]
    if not paragraphs:
        return type(error).__name__
    return paragraphs[-2] if paragraphs[0].startswith("Weights only load failed") else paragraphs[0]
