"""Checksums of the files of a checkpoint, by which a run that goes on from it notices damage."""

import json
import zlib
from pathlib import Path

from algpt2.errors import InputError
from algpt2.files.reading import read_json

CHECKSUMS_FILE = "checksums.json"
# The bytes that are read at once.
PIECE = 1 << 22


def write_checksums(directory):
    """Write the size and the CRC-32 of every file in a directory, and in those in it, to checksums.json.

    Args:
        directory: path.
    """
    directory = Path(directory)
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path != directory / CHECKSUMS_FILE)
    sums = {str(path.relative_to(directory)): _checksum(path) for path in files}
    (directory / CHECKSUMS_FILE).write_text(json.dumps(sums, indent=2) + "\n")


def check_checksums(directory):
    """Raise an InputError if a file is gone, or is not as it was when `write_checksums` saw it.

    A file that came later has no checksum.

    Args:
        directory: path. Nothing is checked if it has no checksums.json.

    Example:
        >>> path = Path("runs/example/checkpoint-1")
        >>> path.mkdir(parents=True, exist_ok=True)
        >>> _ = (path / "state").write_bytes(b"moments")
        >>> write_checksums(path)
        >>> _ = (path / "state").write_bytes(b"momentz")
        >>> check_checksums(path)
        Traceback (most recent call last):
        algpt2.errors.InputError: state is not as it was written: its checksum differs
    """
    directory = Path(directory)
    if not (directory / CHECKSUMS_FILE).is_file():
        return
    for name, expected in read_json(directory / CHECKSUMS_FILE).items():
        path = directory / name
        if not path.is_file():
            raise InputError(f"{name} is gone")
        if path.resolve().is_relative_to(directory.resolve()) and _checksum(path) != expected:
            raise InputError(f"{name} is not as it was written: its checksum differs")


def _checksum(path):
    size = crc = 0
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
    return {"bytes": size, "crc32": f"{crc:08x}"}
