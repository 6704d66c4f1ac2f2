"""Writing aside and renaming: files and directories that are there as a whole or not at all.

Until it is whole, what becomes `run` has a name such as `.run.algpt2-tmp.1f2e3d4c`. Its writer holds the lock
`.run.algpt2-lock`, which the system takes from a process that dies: what has such a name as the lock is taken was left
by a dead process, and is removed.

The files of a directory that stays are replaced in two steps. First all of them come to `.algpt2-incomplete` in it, at
once; then each takes its place. Whoever opens the directory after a process died in between finishes it.
"""

import contextlib
import ctypes
import fnmatch
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

from algpt2.errors import InputError, interruptible
from algpt2.files.disk import flush, flush_directory, share_files, storage_errors_of

# The files that have not taken their place yet, and in it the names of those that are to be removed.
INCOMPLETE, REMOVED = ".algpt2-incomplete", ".algpt2-removed"
# The lock of a directory that has no place for one beside it.
LOCK = ".algpt2-lock"
# What loaders read first goes first and comes back last, so that none of them takes a half for the whole.
READ_FIRST = ("config.json", "tokenizer.json", "*.index.json", "model.weights.json")
AT_FDCWD, RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def writing(target):
    """The right to write a file or a directory, which one process at a time has.

    What a dead process has left of the target is removed, or finished.

    Args:
        target: path, whether it is there or not.

    Yields:
        `Path`: the target, with links followed.

    Raises:
        InputError: if another process is writing it.
        WriteError: if it cannot be written.

    Example:
        >>> with writing("runs/example") as directory:
        ...     directory.name
        'example'
    """
    path = Path(os.path.realpath(target))
    with contextlib.ExitStack() as stack:
        stack.enter_context(interruptible())
        with storage_errors_of(target):
            stack.enter_context(_parents(path))
            is_first = stack.enter_context(_locked(path, target))
            if is_first:
                _remove_leftovers(path)
                _finish(path)
        yield path


@contextlib.contextmanager
def directory_replaced(directory):
    """A new directory that takes the place of another, or of none, only if the block succeeds.

    Args:
        directory: path. What it holds is gone afterwards.

    Yields:
        `Path`: an empty directory elsewhere, of the same name.

    Raises:
        WriteError: if it cannot be written; what was there stays.
        InputError: if another process is writing it.

    Example:
        >>> with directory_replaced("runs/example") as new:
        ...     _ = (new / "note.txt").write_text("whole or not at all")
    """
    with _replaced(directory, _stays, "**/*") as new:
        yield new


@contextlib.contextmanager
def files_replaced_in(directory, stale=()):
    """An empty directory elsewhere, whose files move into `directory` only if the block succeeds.

    Args:
        directory: path; made if it is not there. Its other files stay as they are.
        stale: iterable of str, names with wildcards. The files and empty directories of `directory` to remove unless
            they are replaced.

    Raises:
        WriteError: if the directory cannot be written.
        InputError: if a directory is in the place of a file, or a file in that of a directory; or if another process
            is writing the directory.

    Example:
        >>> with files_replaced_in("runs/example") as temporary:
        ...     _ = (temporary / "note.txt").write_text("whole or not at all")
    """
    with _replaced(directory, Path.is_dir, *stale) as new:
        yield new


@contextlib.contextmanager
def file_replaced(path):
    """The path of a file elsewhere, of the same name, that takes the place of another only if the block succeeds.

    Args:
        path: path; its directory is made if it is not there.

    Raises:
        WriteError: if it cannot be written.
        InputError: if another process is writing it.

    Example:
        >>> with file_replaced("runs/example/note.txt") as new:
        ...     _ = new.write_text("whole or not at all")
    """
    with writing(path) as target, storage_errors_of(path), _temporary(target, target.parent) as temporary:
        new = temporary / target.name
        yield new
        share_files(temporary)
        flush(temporary)
        os.replace(new, target)
        flush_directory(target.parent)


def write_text(path, text):
    """Write a text file as a whole; raises a WriteError if it cannot be written."""
    with file_replaced(path) as new:
        new.write_text(text, encoding="utf-8")


def require_whole(directory):
    """Finish the files of a directory that a process was killed in replacing.

    Args:
        directory: path.

    Raises:
        InputError: if that cannot be done.
    """
    marker = Path(directory) / INCOMPLETE
    if not marker.exists():
        return
    reason = f"{INCOMPLETE} is none of its directories"
    try:
        with writing(directory):
            if not marker.exists():
                return
    except InputError as error:
        reason = error
    raise InputError(f"{directory}: is half-written ({reason}); write it again by the command that was killed")


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
        # `_remove_leftovers` puts the new one in place if the process dies in between.
        aside = new.with_name(f"old-{directory.name}")
        os.rename(directory, aside)
        os.rename(new, directory)
        shutil.rmtree(aside, ignore_errors=True)
    flush_directory(directory.parent)


def _exchange(one, other):
    """Whether the system could exchange the names of two directories at once; Linux can on most file systems."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    return bool(rename) and rename(AT_FDCWD, bytes(one), AT_FDCWD, bytes(other), RENAME_EXCHANGE) == 0


def _stays(directory):
    """Whether a directory cannot give its name to another: one that something is mounted on, or that is in use."""
    if not directory.is_dir():
        return False
    # An empty one may be a volume of a container, which does not look like one.
    return directory in (Path.cwd(), *Path.cwd().parents) or os.path.ismount(directory) or not any(directory.iterdir())


@contextlib.contextmanager
def _replaced(directory, stays, *stale):
    """A directory for what becomes `directory`, or, where `stays(path)` says that it does, for new files of it."""
    with writing(directory) as target, storage_errors_of(directory):
        in_place = stays(target)
        with _temporary(target, target if in_place else target.parent) as temporary:
            new = temporary / target.name
            new.mkdir()
            yield new
            if in_place:
                _replace_files(new, target, stale)
            else:
                put_in_place(new, target)


def _replace_files(new, directory, stale):
    """Move the files of a directory into another one, and remove those that are stale."""
    files = [path.relative_to(new) for path in new.rglob("*") if not path.is_dir()]
    for file in files:
        _require_place(directory, file)
    found = {path for pattern in stale for path in directory.glob(pattern) if new.parent not in (path, *path.parents)}
    names = [path.relative_to(directory) for path in sorted(found, reverse=True) if path.name != LOCK]
    removed = [str(file) for file in names if file not in files and _is_inside(directory, file)]
    is_one = len(files) + len(removed) == 1
    if removed:
        (new / REMOVED).write_text(json.dumps(removed))
    share_files(new)
    flush(new)
    if is_one and files:
        (directory / files[0].parent).mkdir(parents=True, exist_ok=True)
        os.replace(new / files[0], directory / files[0])
    else:
        os.rename(new, directory / INCOMPLETE)
        _finish(directory)
    flush_directory(directory)


def _finish(directory):
    """Put the files of a directory in place that are complete, and remove the stale ones; as often as it takes."""
    incomplete = directory / INCOMPLETE
    if not incomplete.is_dir():
        return
    files = [path.relative_to(incomplete) for path in incomplete.rglob("*") if not path.is_dir()]
    files = sorted((file for file in files if file.name != REMOVED), key=_rank)
    try:
        removed = json.loads((incomplete / REMOVED).read_text()) if (incomplete / REMOVED).exists() else []
        # A directory from elsewhere may have one of its own.
        if not isinstance(removed, list) or not all(_is_inside(directory, file) for file in (*files, *removed)):
            raise ValueError("it names files elsewhere")
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{incomplete}: damaged ({error}); remove it") from error
    for file in files:
        if _rank(file) < len(READ_FIRST):
            (directory / file).unlink(missing_ok=True)
    for file in removed:
        path = directory / file
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        elif not any(path.iterdir()):
            path.rmdir()
    for file in reversed(files):
        (directory / file.parent).mkdir(parents=True, exist_ok=True)
        os.replace(incomplete / file, directory / file)
    shutil.rmtree(incomplete)


def _is_inside(directory, file):
    """Whether a file, a relative path, is in a directory, also where links lead elsewhere."""
    return Path(os.path.realpath((directory / file).parent)).is_relative_to(directory)


def _rank(file):
    """The place of a file among those that are read first, which come before all others."""
    places = (place for place, pattern in enumerate(READ_FIRST) if fnmatch.fnmatchcase(file.name, pattern))
    return next(places, len(READ_FIRST))


@contextlib.contextmanager
def _parents(path):
    """The directory that a path is in, made if need be; it goes again if nothing comes into it."""
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for parent in made:
                parent.rmdir()


@contextlib.contextmanager
def _locked(path, name):
    """The lock of a path; yields whether this process had it already. `name` is shown in an error."""
    beside = os.access(path.parent, os.W_OK) and not os.path.ismount(path)
    file = path.parent / f".{path.name}.algpt2-lock" if beside or not path.is_dir() else path / LOCK
    lock = FileLock(file, is_singleton=True, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        if not file.exists():
            raise InputError(f"{name}: cannot be written there; write elsewhere") from error
        raise InputError(f"{name}: another process is writing it; wait for it, or write elsewhere") from error
    try:
        yield lock.lock_counter == 1
    finally:
        try:
            if lock.lock_counter == 1:
                file.unlink(missing_ok=True)
        finally:
            lock.release()


@contextlib.contextmanager
def _temporary(target, place):
    """An empty directory in `place`, for what becomes `target`."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.algpt2-tmp.", dir=place))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove_leftovers(target):
    """Remove what dead processes have left of a target, whose lock this process holds."""
    pattern = re.compile(re.escape(f".{target.name}.algpt2-tmp.") + "[a-z0-9_]{8}")
    for place in (target.parent, target):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            for left in (place / name for name in os.listdir(place) if pattern.fullmatch(name)):
                if (left / f"old-{target.name}").exists() and not target.exists():
                    os.rename(left / target.name, target)
                shutil.rmtree(left, ignore_errors=True)


def _require_place(directory, file):
    target = directory / file
    if target.is_dir():
        raise InputError(f"{target}: is a directory, where a file is to be written")
    if not _is_inside(directory, file):
        raise InputError(f"{target.parent}: is a link to a place outside of {directory}; remove it")
    for parent in target.parents[: len(file.parents) - 1]:
        if parent.exists() and not parent.is_dir():
            raise InputError(f"{parent}: is a file, where a directory is to be written")
