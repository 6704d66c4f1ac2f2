"""Local files as documents: text, JSON lines and Parquet, gzipped or not, each read in bounded memory."""

import codecs
import contextlib
import glob
import gzip
import hashlib
import io
import json
import zlib
from pathlib import Path

from algpt2.errors import InputError

# Bytes read at once.
BLOCK = 1 << 20
ROWS = 256


def find_files(pattern):
    """The files that a path, a folder or a glob names, in the order of their names.

    Args:
        pattern: str or path. Of a folder, the text, JSON lines and Parquet files in it and below, known by their
            endings: .txt, .tokens, .raw, .md, .jsonl, .parquet, and each of them with .gz.

    Returns:
        list of `Path`; empty if there is none.
    """
    path = Path(pattern)
    if path.is_file():
        return [path]
    if path.is_dir():
        # Unlike Path.rglob, glob follows links to folders and leaves hidden ones out.
        pattern = Path(glob.escape(str(path)), "**")
    files = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]
    return [file for file in files if file.is_file() and has_text_ending(file)] if path.is_dir() else files


def has_text_ending(path):
    """Whether the name of a file says that it is one of the formats that are read."""
    return _ending(Path(path)) in (".txt", ".tokens", ".raw", ".md", *ROW_READERS)


def read_file(path, text_column="text"):
    """The documents of a file: every row that is not blank of .jsonl and .parquet, the whole of any other file.

    Args:
        path: `Path`.
        text_column: str. The column of a row that holds the text.

    Yields:
        iterable of str: the pieces of a document, cut after line ends where there are any.

    Raises:
        InputError: if the file cannot be read, is not what its name says, or holds no text.
    """
    reader = ROW_READERS.get(_ending(path))
    if reader is None:
        yield _not_blank(_text_pieces(path), path)
    else:
        for text in _not_blank(reader(path, text_column), path):
            if text.strip():
                yield (text,)


def hash_file(path):
    """A hash of the content of a file, in hexadecimal."""
    # Several times as fast as SHA-256, which matters for gigabytes.
    digest = hashlib.blake2b(digest_size=32)
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def _ending(path):
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _unreadable(path, error):
    return InputError(f"{path}: cannot be read ({error.strerror or error}); give a text file or a quoted glob")


@contextlib.contextmanager
def _opened(path):
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: a damaged gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _not_blank(texts, path):
    blank = True
    for text in texts:
        blank = blank and not text.strip()
        yield text
    if blank:
        raise InputError(f"{path}: the file is empty")


def _text_pieces(path):
    """The text of a file, cut after line ends, or before spaces in lines longer than a block."""
    rest = ""
    for text in _decoded(path):
        rest += text
        cut = rest.rfind("\n") + 1 or (rest.rfind(" ") if len(rest) > 2 * BLOCK else 0)
        if cut > 0:
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield rest


def _decoded(path):
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    position = 0
    with _opened(path) as file:
        while True:
            block = file.read(BLOCK)
            pending = len(decoder.getstate()[0])
            try:
                yield decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                byte = position - pending + error.start
                raise InputError(f"{path}: not UTF-8 text (byte {byte}); convert it first") from error
            if not block:
                return
            position += len(block)


def _read_json_lines(path, text_column):
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place}: not JSON ({error}); expected one object a line") from error
            if not isinstance(row, dict):
                raise InputError(f"{place}: expected an object, found {type(row).__name__}")
            yield row_text(row, text_column, place)


def row_text(row, text_column, place):
    """The text of a row.

    Args:
        row: dict of str to value.
        text_column: str.
        place: str. Where the row is, for errors.

    Raises:
        InputError: if the column is missing, or holds no text.
    """
    if text_column not in row:
        raise InputError(f"{place}: no column {text_column!r}; give --text-column, one of {', '.join(map(str, row))}")
    text = row[text_column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InputError(f"{place}: column {text_column!r} holds {type(text).__name__}, expected text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: half of a surrogate pair at character {error.start}; not valid text") from error
    return text


def _read_parquet(path, text_column):
    import pyarrow
    from pyarrow import parquet

    try:
        with _opened(path) as file, parquet.ParquetFile(file, pre_buffer=False) as table:
            names = table.schema_arrow.names
            # If the column is missing, `row_text` reports it with the names of the others.
            columns = [text_column] if text_column in names else None
            row = 0
            for batch in table.iter_batches(batch_size=ROWS, columns=columns):
                for values in batch.to_pylist() if columns else [dict.fromkeys(names)]:
                    row += 1
                    yield row_text(values, text_column, f"{path}, row {row}")
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not readable as Parquet ({error})") from error


ROW_READERS = {".jsonl": _read_json_lines, ".parquet": _read_parquet}
