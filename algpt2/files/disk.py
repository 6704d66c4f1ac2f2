"""Permissions of files, flushing to the disk, and which errors mean that the disk failed."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from safetensors import SafetensorError

from algpt2.errors import InputError


class WriteError(InputError):
    """A file or a directory that cannot be written; `__cause__` is the error of the system."""


@contextlib.contextmanager
def storage_errors_of(path):
    """Errors of the disk as a WriteError that names the path."""
    try:
        yield
    except Exception as error:
        cause = storage_error(error)
        if cause is None:
            raise
        # Libraries that do not say the system's words report a write that was cut off.
        why = getattr(cause, "strerror", None) or f"{cause}; is the disk full?"
        raise WriteError(f"{path}: cannot be written ({why})") from cause


def storage_error(error):
    """What kept a file from being written, if an error means that; else `None`.

    Args:
        error: `Exception`.
    """
    cause = error.__cause__ if isinstance(error, WriteError) else error
    # PyTorch reports a full disk by RuntimeErrors in the words of C++, tokenizers by an Exception in those of Rust.
    of_torch = ("iostream error", "failed writing file", "unexpected pos")
    is_one = (
        isinstance(cause, (OSError, SafetensorError))
        or any(words in str(cause) for words in of_torch)
        or (type(cause) is Exception and "(os error " in str(cause))
    )
    return cause if is_one else None


def share_files(directory):
    """Give a directory and what is in it the permissions that new ones have; some are made for their owner alone.

    Args:
        directory: path.
    """
    # A new one tells, for its place and in all threads; asking for the mask of the process would set it.
    with tempfile.TemporaryDirectory(dir=directory) as place:
        (Path(place) / "new").mkdir()
        mode = stat.S_IMODE((Path(place) / "new").stat().st_mode)
    for path in (Path(directory), *Path(directory).rglob("*")):
        if not path.is_symlink():
            path.chmod(mode if path.is_dir() else mode & 0o666)


def flush(directory):
    """Have the system write a directory and all its files to the disk.

    Without it, a machine that loses its power could keep a name and lose the contents.

    Args:
        directory: `Path`.
    """
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    flush_directory(directory)


def flush_directory(directory):
    """Have the system write the names in a directory, a `Path`, to the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
