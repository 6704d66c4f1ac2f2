"""Local files as documents: text, JSON and Parquet, gzipped or not, each read in bounded memory."""

import codecs
import contextlib
import glob
import gzip
import hashlib
import io
import itertools
import json
import re
import zlib
from pathlib import Path

from algpt2.errors import InputError
from algpt2.files.reading import open_ordinary

# Bytes read at once, and the least characters of a piece of a long document.
BLOCK = 1 << 20
ROWS = 256
# A text that is there many times takes few bytes in a Parquet file.
PARQUET_ROWS = 8
# The most bytes of what is in memory at once: a row of JSON or Parquet, or a stretch of text without a space.
ROW_LIMIT = 32 << 20
TEXT_ENDINGS = (".txt", ".tokens", ".raw", ".md")
BYTE_ORDER_MARK = "\ufeff"
# Between the values of a JSON file.
SEPARATORS = re.compile(r"[ \t\r\n,]*")


def find_files(pattern):
    """The files that a path, a folder or a glob names, in the order of their names.

    Args:
        pattern: str or path. Of a folder, the text, JSON lines and Parquet files in it and below, known by their
            endings in small or capital letters: .txt, .tokens, .raw, .md, .jsonl, .ndjson, .parquet, and each of them
            with .gz. A .json file, which in a folder may be anything, is read if it is named.

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
    found = [file for file in files if file.is_file()]
    return [file for file in found if has_text_ending(file) and _ending(file) != ".json"] if path.is_dir() else found


def has_text_ending(path):
    """Whether the name of a file says that it is one of the formats that are read."""
    return _ending(Path(path)) in (*TEXT_ENDINGS, *ROW_READERS)


def read_file(path, text_column="text"):
    """The documents of a file: every row that is not blank of JSON and Parquet, the whole of any other file.

    Args:
        path: `Path`.
        text_column: str. The column of a row that holds the text.

    Yields:
        iterable of str: the pieces of a document, cut anywhere.

    Raises:
        InputError: if the file cannot be read, is not what its name says, holds no text, or a row above the limit.
    """
    reader = ROW_READERS.get(_ending(path))
    if reader is None:
        yield _not_blank(_decoded(path), path)
    else:
        for text in _not_blank(reader(path, text_column), path):
            if text.strip():
                yield (text,)


def hash_file(path):
    """A hash of the content of a file, in hexadecimal."""
    # Several times as fast as SHA-256, which matters for gigabytes.
    digest = hashlib.blake2b(digest_size=32)
    try:
        with open(path, "rb", opener=open_ordinary) as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


def endings(path):
    """The endings of the name of a file, such as [".jsonl", ".gz"], in small letters."""
    return [ending.lower() for ending in path.suffixes]


def has_rows(path):
    """bool: whether a file, a `Path`, has rows with columns, as JSON and Parquet do."""
    return _ending(path) in ROW_READERS


def _ending(path):
    *_, ending = ["", *endings(path)[: -1 if _is_zipped(path) else None]]
    return ending


def _is_zipped(path):
    return path.suffix.lower() == ".gz"


def _unreadable(path, error):
    return InputError(f"{path}: cannot be read ({error.strerror or error}); give a text file or a quoted glob")


@contextlib.contextmanager
def _opened(path):
    try:
        with gzip.open(path) if _is_zipped(path) else path.open("rb") as file:
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
        raise InputError(f"{path}: the file holds no text")


def cut_pieces(texts, name):
    """A document in pieces of about a megabyte, cut after line ends, or before spaces in long lines.

    Args:
        texts: iterable of str. The document, cut anywhere.
        name: str. What an error calls it.

    Yields:
        str, never empty.

    Raises:
        InputError: if there is no place to cut within the limit.
    """
    rest = ""
    for text in texts:
        for start in range(0, len(text), BLOCK):
            rest += text[start : start + BLOCK]
            if len(rest) < BLOCK:
                continue
            # A carriage return at the end may be the first half of a line end.
            cut = max(rest.rfind("\n"), rest.rfind("\r", 0, -1)) + 1
            if not cut and len(rest) > 2 * BLOCK:
                cut = max(rest.rfind(" "), 0)
            if cut:
                yield rest[:cut]
                rest = rest[cut:]
            elif len(rest) > ROW_LIMIT:
                raise InputError(
                    f"{name}: more than {_megabytes(ROW_LIMIT)} without a space or a line end; is this text?"
                )
    if rest:
        yield rest


def _decoded(path):
    """The text of a file, with \\n for all line ends, and without the mark that some editors put at its start."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    position, mark = 0, BYTE_ORDER_MARK
    with _opened(path) as file:
        while True:
            block = file.read(BLOCK)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                byte = position - pending + error.start
                raise InputError(f"{path}: not UTF-8 text (byte {byte}); convert it first") from error
            if text:
                yield text.removeprefix(mark)
                mark = ""
            if not block:
                return
            position += len(block)


def _read_json_lines(path, text_column):
    for row, place in json_lines(path):
        yield row_text(row, text_column, place)


def json_lines(path):
    """The rows of a file with an object in each line that is not blank.

    Args:
        path: `Path`.

    Yields:
        tuple of dict and str: a row, and where it is, for errors.

    Raises:
        InputError: if the file cannot be read, or a line is no object or above the limit.
    """
    number = 0
    with _opened(path) as file:
        while content := file.readline(ROW_LIMIT + 1):
            if len(content) > ROW_LIMIT:
                raise _row_too_long(f"{path}, line {number + 1}")
            # Of bytes, and so at line feeds and carriage returns only.
            for line in content.splitlines():
                number += 1
                place = f"{path}, line {number}"
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                    row = json.loads(text) if text.strip() else None
                except (ValueError, RecursionError) as error:
                    raise InputError(f"{place}: not JSON ({error}); expected one object a line") from error
                if text.strip():
                    yield _object(row, place), place


def _read_json(path, text_column):
    """The rows of a JSON file: those of the array that it holds, or objects one after the other."""
    parse, pieces, text, number, is_array = json.JSONDecoder().raw_decode, _decoded(path), "", 1, None
    while True:
        # Twice as much each time, since a row that is not whole is parsed anew.
        more = "".join(itertools.islice(pieces, 1 + len(text) // BLOCK))
        text, start = text + more, 0
        if is_array is None and text.strip():
            is_array = text.lstrip().startswith("[")
            start = text.index("[") + 1 if is_array else 0
        place = f"{path}, row {number}"
        while True:
            try:
                row, start = parse(text, SEPARATORS.match(text, start).end())
            except (ValueError, RecursionError) as problem:
                error = problem
                break
            yield row_text(_object(row, place), text_column, place)
            number += 1
            place = f"{path}, row {number}"
        text = text[start:].strip()
        if not more and text == ("]" if is_array else ""):
            return
        # What is not whole yet gives an error as well.
        if not more or not isinstance(error, json.JSONDecodeError):
            raise InputError(f"{place}: not JSON ({error}); expected objects, or one array of them")
        if len(text) > ROW_LIMIT:
            raise InputError(f"{place}: not JSON within {_megabytes(ROW_LIMIT)}, the most for a row ({error})")


def _object(row, place):
    if not isinstance(row, dict):
        raise InputError(f"{place}: expected an object, found {type(row).__name__}")
    return row


def _row_too_long(place):
    return InputError(f"{place}: longer than {_megabytes(ROW_LIMIT)}, the most for a row; divide it into more rows")


def _megabytes(size):
    return f"{size >> 20} MiB"


def row_text(row, text_column, place):
    """The text of a row.

    Args:
        row: dict of str to value.
        text_column: str.
        place: str. Where the row is, for errors.

    Raises:
        InputError: if the column is missing, or holds no text, or more than the limit.
    """
    if text_column not in row:
        raise InputError(f"{place}: no column {text_column!r}; give --text-column, one of {', '.join(map(str, row))}")
    text = row[text_column]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise InputError(f"{place}: column {text_column!r} holds {type(text).__name__}, expected text")
    if len(text) > ROW_LIMIT:
        raise _row_too_long(place)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: half of a surrogate pair at character {error.start}; not valid text") from error
    return text.removeprefix(BYTE_ORDER_MARK)


def _read_parquet(path, text_column):
    import pyarrow
    from pyarrow import parquet

    options = {"pre_buffer": False, "page_checksum_verification": True}
    try:
        with _opened(path) as file, parquet.ParquetFile(file, **options) as table:
            names = table.schema_arrow.names
            if text_column not in names:
                # An error that names the columns that there are.
                row_text(dict.fromkeys(names), text_column, f"{path}, row 1")
            for group in range(table.num_row_groups):
                part = table.metadata.row_group(group)
                for column in map(part.column, range(part.num_columns)):
                    if column.path_in_schema == text_column:
                        _check_mean(column, f"{path}, row group {group + 1}")
            number = 0
            for batch in table.iter_batches(batch_size=PARQUET_ROWS, columns=[text_column]):
                for value in batch.column(0):
                    number += 1
                    yield row_text({text_column: value.as_py()}, text_column, f"{path}, row {number}")
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not readable as Parquet ({error})") from error


def _check_mean(column, place):
    if column.total_uncompressed_size > ROW_LIMIT * max(column.num_values, 1):
        raise _row_too_long(place)


ROW_READERS = {
    **dict.fromkeys((".jsonl", ".ndjson"), _read_json_lines),
    ".json": _read_json,
    ".parquet": _read_parquet,
}
