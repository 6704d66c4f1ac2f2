"""Writing aside and renaming: files and directories that are there as a whole or not at all.

Until it is whole, it has a name such as `.run.algpt2-tmp.host.4711.1f2e3d4c`, made of the target, the machine, the
process and a random part. A process that starts to write the same target removes what dead processes of its machine
have left.
"""

import contextlib
import ctypes
import itertools
import os
import re
import secrets
import shutil
import socket
from pathlib import Path

from safetensors import SafetensorError

from algpt2.errors import InputError

# Lies in a directory while several of its files are being replaced.
MARKER = ".algpt2-incomplete"
AT_FDCWD, RENAME_EXCHANGE = -100, 2


class WriteError(InputError):
    """A file or a directory that cannot be written; `__cause__` is the error of the system."""


@contextlib.contextmanager
def directory_replaced(directory):
    """A new directory that takes the place of another, or of none, only if the block succeeds.

    Args:
        directory: path. What it holds is gone afterwards.

    Yields:
        `Path`: an empty directory elsewhere, of the same name.

    Raises:
        WriteError: if it cannot be written; what was there stays.

    Example:
        >>> with directory_replaced("runs/example") as new:
        ...     _ = (new / "note.txt").write_text("whole or not at all")
    """
    directory = Path(directory)
    with _errors_of(directory), _temporary(directory, directory.parent) as temporary:
        new = temporary / directory.name
        new.mkdir()
        yield new
        put_in_place(new, directory)


@contextlib.contextmanager
def files_replaced_in(directory, stale=()):
    """A temporary directory whose files move into `directory` only if the block succeeds.

    If the process is killed while they move, a marker stays in the directory, which `require_whole` finds.

    Args:
        directory: path; made if it is not there. Its other files stay as they are.
        stale: iterable of str, names with wildcards. The files and empty directories of `directory` to remove unless
            they are replaced.

    Raises:
        WriteError: if the directory cannot be written.
        InputError: if a directory is in the place of a file, or a file in that of a directory.

    Example:
        >>> with files_replaced_in("runs/example") as temporary:
        ...     _ = (temporary / "note.txt").write_text("whole or not at all")
    """
    directory = Path(directory)
    if not directory.is_dir():
        with directory_replaced(directory) as new:
            yield new
        return
    # The temporary directory lies inside, since an existing directory may be on a disk of its own.
    with _errors_of(directory), _temporary(directory, directory) as temporary:
        yield temporary
        share_files(temporary)
        flush(temporary)
        files = [path.relative_to(temporary) for path in temporary.rglob("*") if not path.is_dir()]
        for file in files:
            _require_place(directory, file)
        old = sorted(itertools.chain.from_iterable(map(directory.glob, stale)), reverse=True)
        old = [path for path in old if path.is_dir() or path.relative_to(directory) not in files]
        if len(files) + len(old) > 1:
            (directory / MARKER).touch()
        for file in files:
            (directory / file.parent).mkdir(parents=True, exist_ok=True)
            os.replace(temporary / file, directory / file)
        for path in old:
            if not path.is_dir():
                path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()
        (directory / MARKER).unlink(missing_ok=True)


def write_text(path, text):
    """Write a text file as a whole; raises a WriteError if it cannot be written."""
    path = Path(path)
    with files_replaced_in(path.parent) as temporary:
        (temporary / path.name).write_text(text, encoding="utf-8")


def require_whole(directory):
    """Raise an InputError if a process was killed while it replaced files of a directory."""
    if (Path(directory) / MARKER).exists():
        raise InputError(
            f"{directory}: is half-written: a process that wrote it was killed; write it again, or remove "
            f"{MARKER} if you know that its files belong together"
        )


def put_in_place(new, directory):
    """Give a whole directory its name, in one step, and remove what had the name.

    Args:
        new: `Path` of the directory, on the same disk.
        directory: `Path`. Its name.
    """
    share_files(new)
    flush(new)
    if not directory.exists():
        os.rename(new, directory)
    elif _exchange(new, directory):
        shutil.rmtree(new, ignore_errors=True)
    else:
        aside = new.with_name(f"old-{directory.name}")
        os.rename(directory, aside)
        os.rename(new, directory)
        shutil.rmtree(aside, ignore_errors=True)
    flush_directory(directory.parent)


def _exchange(one, other):
    """Whether the system could exchange the names of two directories at once; Linux can on most file systems."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    return bool(rename) and rename(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE) == 0


@contextlib.contextmanager
def _temporary(target, place):
    """A directory for what will become `target`, in `place`, which is made if need be."""
    place.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target, place)
    prefix, host = f".{target.name}.algpt2-tmp", _host()
    temporary = place / f"{prefix}.{host}.{os.getpid()}.{secrets.token_hex(4)}"
    temporary.mkdir(mode=0o700)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(target, place):
    """Remove what dead processes of this machine have left of a target.

    Args:
        target: `Path`.
        place: `Path` of the directory to look in.
    """
    pattern = re.compile(re.escape(f".{target.name}.algpt2-tmp.{_host()}.") + r"(\d+)\.[0-9a-f]{8}")
    with contextlib.suppress(OSError):
        for entry in os.scandir(place):
            found = pattern.fullmatch(entry.name)
            if found and not _is_running(int(found[1])):
                shutil.rmtree(entry.path, ignore_errors=True)


def _host():
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname())


def _is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


@contextlib.contextmanager
def _errors_of(directory):
    """Errors of the disk as a WriteError that names the directory."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, WriteError) as error:
        cause = storage_error(error)
        if cause is None:
            raise
        raise WriteError(f"{directory}: cannot be written ({getattr(cause, 'strerror', None) or cause})") from cause


def storage_error(error):
    """What kept a file from being written, if an error means that; else `None`.

    Args:
        error: `Exception`.
    """
    cause = error.__cause__ if isinstance(error, WriteError) else error
    # PyTorch reports a full disk by RuntimeErrors, in the words of C++.
    torch_says = ("iostream error", "failed writing file", "unexpected pos")
    is_one = isinstance(cause, (OSError, SafetensorError)) or any(words in str(cause) for words in torch_says)
    return cause if is_one else None


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
