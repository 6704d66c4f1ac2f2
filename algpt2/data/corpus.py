"""Text in: the built-in corpus, local files and data sets of the Hugging Face hub, as documents."""

import functools
import glob
import itertools
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

from algpt2.checkpoints import CONFIG_FILE
from algpt2.data import HELD_OUT_PART, TFRECORDS_FILE, hub_datasets
from algpt2.data.encoding import TOKENIZER_FILE
from algpt2.data.files import cut_pieces, endings, find_files, has_text_ending, hash_file, read_file
from algpt2.data.hashing import json_hash
from algpt2.data.lines import line_count, lines_with_ends
from algpt2.data.wikitext import detokenize_wikitext
from algpt2.errors import InputError

PYTHON_DOCS = "python-docs"
DETOKENIZERS = {"wikitext": detokenize_wikitext}


@dataclass(frozen=True)
class TextOptions:
    """How the text of a data set is read.

    Args:
        text_column: str. The column that holds the text, of data with columns; `None` means `"text"`.
        streaming: bool. Read a hub data set as it is used, instead of downloading it first.
        detokenize: str. `"wikitext"` undoes the tokenization of WikiText; `None` leaves the text as it is.
        control_code: str. What every document starts with, such as `"<|wiki|> "`.
    """

    text_column: str = None
    streaming: bool = False
    detokenize: str = None
    control_code: str = None

    @property
    def column(self):
        """str: the column that holds the text."""
        return self.text_column or "text"


DEFAULT_OPTIONS = TextOptions()


class Piece(NamedTuple):
    """A part of a document.

    Args:
        text: str, after detokenization and with the control code.
        words: int. The white-space separated words of the source.
        bytes: int. The length of the source in UTF-8.
    """

    text: str
    words: int
    bytes: int


class Documents:
    """Documents that can be read again and again, each a str, none of them kept in memory.

    Args:
        name: str. What messages call them.
        read: function without arguments that gives an iterator over documents, each an iterable of str: its pieces in
            order, cut anywhere. A document is read before the next one is asked for.
        fingerprint: function without arguments that gives a str which differs where the source text differs.
        options: `TextOptions`.
        size: int. The bytes of the source, about, for progress bars; `None` if nobody knows.

    Example:
        >>> documents = Documents.of(["One document.", "Another one."])
        >>> list(documents) == list(documents)
        True
    """

    def __init__(self, name, read, fingerprint, options=DEFAULT_OPTIONS, size=None):
        self.name, self.options, self.size = name, options, size
        self._read, self._fingerprint = lambda: (cut_pieces(document, name) for document in read()), fingerprint

    @classmethod
    def of(cls, texts, name="text", options=DEFAULT_OPTIONS):
        """Documents from a list of str."""
        texts = list(texts)

        def fingerprint():
            return json_hash(*texts)

        return cls(name, lambda: ((text,) for text in texts), fingerprint, options, sum(map(len, texts)))

    def __iter__(self):
        for pieces in self.pieces():
            yield "".join(piece.text for piece in pieces)

    def pieces(self):
        """The documents in pieces of about a megabyte, for documents that do not fit into memory.

        Yields:
            iterator of `Piece`: a document, to be read before the next one.
        """
        words = 0

        def pieces_of(document):
            nonlocal words
            detokenize = DETOKENIZERS.get(self.options.detokenize, str)
            prefix = self.options.control_code or ""
            for text in document:
                piece = Piece(prefix + detokenize(text), len(text.split()), len(text.encode()))
                words += piece.words
                yield piece
                prefix = ""

        for document in self._read():
            yield pieces_of(document)
        if not words:
            raise InputError(f"{self.name}: there is no text")

    def fingerprint(self):
        """A str that differs where the text of the documents differs."""
        return json_hash(self._fingerprint(), self.options.detokenize, self.options.control_code)

    def split_lines(self):
        """These documents without the last twentieth of their lines, and those lines.

        Raises:
            InputError: if there are too few lines.
        """
        # The first lines tell whether there are enough; the rest is counted when it is needed.
        counts = itertools.accumulate(map(line_count, itertools.chain.from_iterable(self._read())))
        if not any(count >= HELD_OUT_PART for count in counts):
            raise InputError(f"{self.name}: too few lines to hold some out; give a validation file")

        @functools.cache
        def split():
            count = sum(map(line_count, itertools.chain.from_iterable(self._read())))
            return count - count // HELD_OUT_PART

        def part(name, between, share):
            return Documents(
                f"{self.name} ({name})",
                lambda: _lines_between(self._read(), *between()),
                lambda: json_hash(self._fingerprint(), name),
                self.options,
                self.size and round(self.size * share),
            )

        share = 1 / HELD_OUT_PART
        train = part("train", lambda: (0, split()), 1 - share)
        return train, part("held out", lambda: (split(), float("inf")), share)


@dataclass(frozen=True)
class Corpus:
    """Documents to train on, and documents held out.

    Args:
        train: `Documents`.
        validation: `Documents`.
    """

    train: Documents
    validation: Documents


def read_corpus(dataset, validation=None, options=DEFAULT_OPTIONS):
    """The documents of a data set, split in two.

    Args:
        dataset: str. `"python-docs"`, the topics of Python's own `help()` (`pydoc_data.topics`, about 465,000
            characters of English with code); a file, a folder or a glob, as `algpt2.data.files.find_files` takes it; or
            a data set of the Hugging Face hub, as `algpt2.data.hub_datasets.Dataset` names it.
        validation: str. The text to hold out, named in the same way. By default: of `python-docs`, every tenth topic;
            of files, the last twentieth of the lines; of hub data sets, the split validation or test, or if there is
            neither, the last twentieth of the documents (the first 1,000 if streamed).
        options: `TextOptions`.

    Returns:
        `Corpus`.

    Raises:
        InputError: if there is no such data, or it holds no text. Files are checked as they are read.

    Example:
        >>> len(list(read_corpus("python-docs").train)) > 60
        True
    """
    held_out = None if validation is None else read_documents(validation, options)
    if is_python_docs(dataset):
        train, own = _python_docs(options)
    elif files := local_files(dataset):
        train, own = _file_documents(dataset, files, options), None
        if held_out is None:
            train, own = train.split_lines()
    else:
        source = hub_datasets.Dataset(dataset, options.column, options.streaming)
        train = _hub_documents(source.train, options)
        own = _hub_documents(source.held_out, options) if held_out is None else None
    return Corpus(train, held_out or own)


def read_documents(dataset, options=DEFAULT_OPTIONS, split=None):
    """The documents to evaluate on.

    Args:
        dataset: str, as in `read_corpus`. `python-docs` and hub data sets give what `read_corpus` would hold out,
            files give all their documents.
        options: `TextOptions`.
        split: str. Other splits of a hub data set, or of `python-docs` (train, validation), with commas between.

    Returns:
        `Documents`.

    Raises:
        InputError: as `read_corpus`; or if there is no such split.
    """
    if not has_splits(dataset):
        if split is not None:
            raise InputError(f"{dataset}: files have no splits, found {split!r}; name the files of the split")
        return _file_documents(dataset, local_files(dataset), options)
    if is_python_docs(dataset):
        parts = dict(zip(("train", "validation"), _python_docs(options), strict=True))
        if split is None:
            return parts["validation"]
        if unknown := [name for name in split.split(",") if name not in parts]:
            raise InputError(f"{dataset}: has no split {unknown[0]!r}; it has {', '.join(parts)}")
        return _joined([parts[name] for name in split.split(",")])
    source = hub_datasets.Dataset(dataset, options.column, options.streaming)
    parts = [source.held_out] if split is None else [source.split(name) for name in split.split(",")]
    return _joined([_hub_documents(part, options) for part in parts])


def has_splits(dataset):
    """Whether a data set comes in named splits, as `python-docs` and those of the hub do.

    Args:
        dataset: str, as in `read_corpus`.

    Raises:
        InputError: if it names files, and there are none.
    """
    return is_python_docs(dataset) or not local_files(dataset)


def is_python_docs(dataset):
    """bool: whether the name of a data set, str, means the topics of Python's `help()`."""
    return dataset == PYTHON_DOCS and not Path(dataset).exists()


def _python_docs(options):
    # Some topics are there under two names.
    documents = list(dict.fromkeys(topics[name] for name in sorted(topics)))
    held_out = documents[5::10]
    train = [document for document in documents if document not in held_out]
    return Documents.of(train, PYTHON_DOCS, options), Documents.of(held_out, PYTHON_DOCS, options)


def local_files(dataset):
    """The local files of a data set, list of `Path`; empty if it is the name of a hub data set.

    Args:
        dataset: str, as in `read_corpus`.

    Raises:
        InputError: if it names files, and there are none.
    """
    directory = Path(dataset)
    if (directory / TFRECORDS_FILE).is_file():
        raise InputError(f"{dataset}: holds TFRecords, which train and evaluate of algpt2_tf read; give their text")
    if (directory / CONFIG_FILE).is_file() and (directory / TOKENIZER_FILE).is_file():
        raise InputError(f"{dataset}: is the directory of a model; give a text")
    files = find_files(dataset)
    if files:
        return files
    if directory.is_dir():
        raise InputError(f"{dataset}: no .txt, .tokens, .raw, .md, .jsonl, .ndjson or .parquet file in this folder")
    if has_text_ending(dataset) or glob.has_magic(str(dataset)) or not hub_datasets.is_name(str(dataset)):
        raise InputError(
            f"{dataset}: no such file; give a text file, a folder, a quoted glob, the name of a hub data set, "
            f"or {PYTHON_DOCS!r}"
        )
    return []


def _file_documents(name, files, options):
    def read():
        for path in files:
            yield from read_file(path, options.column)

    def fingerprint():
        # The ending says how a file is read.
        return json_hash(options.column, *(part for path in files for part in (endings(path), hash_file(path))))

    return Documents(str(name), read, fingerprint, options, sum(path.stat().st_size for path in files))


def _joined(parts):
    """The documents of some parts, one after the other."""
    if len(parts) == 1:
        return parts[0]
    size = None if None in [part.size for part in parts] else sum(part.size for part in parts)
    return Documents(
        parts[0].name,
        lambda: itertools.chain.from_iterable(part._read() for part in parts),
        lambda: json_hash(*(part.fingerprint() for part in parts)),
        parts[0].options,
        size,
    )


def _hub_documents(part, options):
    return Documents(part.name, part.documents, part.fingerprint, options, part.size)


def _lines_between(documents, start, stop):
    """The documents reduced to the lines from `start` on and before `stop`, counted over all of them."""
    line = 0

    def cut(document):
        nonlocal line
        for piece in document:
            first, line = line, line + line_count(piece)
            if line <= start or first >= stop:
                continue
            if first < start or line > stop:
                lines = lines_with_ends(piece)
                piece = "".join(lines[max(start - first, 0) : min(stop - first, len(lines))])
            yield piece

    for document in documents:
        if line >= stop:
            return
        pieces = cut(document)
        piece = next(pieces, None)
        if piece is not None:
            yield itertools.chain((piece,), pieces)
