"""Reading files that may be anything: what a file of its kind cannot be is refused before it is believed."""

import itertools
import json
import os
import stat

from algpt2.errors import InputError

# The most bytes of a configuration, of the index of a large model's shards or the history of a long run, and of a
# tokenizer.
CONFIG_BYTES, INDEX_BYTES, TOKENIZER_BYTES = 4 << 20, 32 << 20, 64 << 20
# How deep the values of JSON are nested at most; what copies and compares them is recursive.
DEPTH = 64
# No library takes a larger integer.
LARGEST = 2**63 - 1


def read_bytes(path, most=CONFIG_BYTES):
    """The content of an ordinary file.

    Args:
        path: path.
        most: int. The bytes that it may have.

    Returns:
        bytes.

    Raises:
        InputError: if it is missing, is a directory, a pipe or a device, is larger, or cannot be read.

    Example:
        >>> read_bytes("/dev/zero")
        Traceback (most recent call last):
        algpt2.errors.InputError: /dev/zero: is not an ordinary file
    """
    try:
        with open(path, "rb", opener=open_ordinary) as file:
            content = file.read(most + 1)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if len(content) > most:
        raise InputError(f"{path}: is larger than {most >> 20} MB, which no file of its kind is")
    return content


def open_ordinary(path, flags):
    """The opener, for `open`, of ordinary files alone: a pipe would wait for its other end, a device may have no end.

    Raises:
        OSError: for anything else.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError("is a directory, not a file" if stat.S_ISDIR(mode) else "is not an ordinary file")
    return descriptor


def require_ordinary(path, most=None):
    """Raise an InputError if a path is there that a library would read without an end.

    Args:
        path: `Path`.
        most: int. The bytes that the file may have; `None` for any number.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise InputError(f"{path}: is {'a directory, not a file' if path.is_dir() else 'not an ordinary file'}")
    if most is not None and path.stat().st_size > most:
        raise InputError(f"{path}: is larger than {most >> 20} MB, which no file of its kind is")


def read_json(path, most=CONFIG_BYTES, largest=LARGEST):
    """The object in a JSON file.

    Args:
        path: path.
        most: int. The bytes that the file may have.
        largest: int. The largest integer that it may hold.

    Returns:
        dict.

    Raises:
        InputError: if the file is missing or damaged, or holds something else.
    """
    content = parse_json(read_bytes(path, most), path, largest)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def parse_json(content, source, largest=LARGEST):
    """The value of a JSON text.

    Args:
        content: str or bytes, in UTF-8.
        source: str or path. Names the text in an error.
        largest: int. The largest integer that it may hold.

    Returns:
        dict, list, str, int, float, bool or `None`.

    Raises:
        InputError: if it is not JSON, is nested too deep, or holds a larger integer or half of a
            surrogate pair, which cannot be written again.

    Example:
        >>> parse_json("[" * 100 + "]" * 100, "text")
        Traceback (most recent call last):
        algpt2.errors.InputError: text: not readable as JSON (values are nested deeper than 64)
    """
    try:
        value = json.loads(content.decode("utf-8") if isinstance(content, bytes) else content)
        _require_bounded(value, largest)
    except RecursionError as error:
        raise InputError(f"{source}: not readable as JSON (values are nested deeper than {DEPTH})") from error
    except ValueError as error:
        raise InputError(f"{source}: not readable as JSON ({error})") from error
    return value


def _require_bounded(value, largest):
    level, depth = [value], 0
    while level:
        if any(isinstance(entry, int) and not -largest <= entry <= largest for entry in level):
            raise ValueError(f"an integer has more than {largest.bit_length() + 1} bits")
        for text in itertools.chain(level, *(entry for entry in level if isinstance(entry, dict))):
            if isinstance(text, str) and not text.isascii():
                text.encode()
        parents = [entry for entry in level if isinstance(entry, dict | list)]
        level = [child for entry in parents for child in (entry.values() if isinstance(entry, dict) else entry)]
        depth += bool(parents)
        if depth > DEPTH:
            raise ValueError(f"values are nested deeper than {DEPTH}")
