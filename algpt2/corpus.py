"""Text in: the built-in corpus and local text files, as documents for training and for validation."""

import glob
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from algpt2.errors import InputError

PYTHON_DOCS = "python-docs"


@dataclass(frozen=True)
class Corpus:
    """Documents to train on, and documents held out.

    Args:
        train: list of str.
        validation: list of str.
    """

    train: list
    validation: list


def read_corpus(dataset, validation=None):
    """The documents of a data set, split in two.

    Args:
        dataset: str. `"python-docs"`, the topics of Python's own `help()` (`pydoc_data.topics`, about 465,000
            characters of English with code), or a text file in UTF-8, or a glob of such files.
        validation: str. The held-out text, a file or a glob. By default every tenth topic of `python-docs`, or the
            last twentieth of the lines of the files.

    Returns:
        `Corpus`.

    Raises:
        InputError: if a file is missing, empty or not UTF-8.

    Example:
        >>> len(read_corpus("python-docs").train) > 60
        True
    """
    if dataset == PYTHON_DOCS:
        # Some topics are there under two names.
        documents = list(dict.fromkeys(topics[name] for name in sorted(topics)))
        held_out = documents[5::10]
        train = [document for document in documents if document not in held_out]
    else:
        train = read_files(dataset)
        held_out = None
    if validation is not None:
        held_out = read_files(validation)
    if held_out is None:
        train, held_out = _split_lines(train)
        if not "".join(held_out).strip():
            raise InputError(f"{dataset}: too few lines to hold some out; give a validation file")
    return Corpus(train, held_out)


def read_files(pattern):
    """The texts of the files that a path or a glob names, in the order of their names.

    Raises:
        InputError: if there is none, or one is empty or not UTF-8.
    """
    paths = [Path(pattern)] if Path(pattern).is_file() else [Path(p) for p in sorted(glob.glob(str(pattern)))]
    if not paths:
        raise InputError(f"{pattern}: no such file; give a text file, a glob of text files, or {PYTHON_DOCS!r}")
    documents = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text (byte {error.start}); convert it first") from error
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror}); give a text file or a quoted glob") from error
        if not text.strip():
            raise InputError(f"{path}: the file is empty")
        documents.append(text)
    return documents


def _split_lines(documents):
    """The documents without the last twentieth of all lines, and those lines."""
    documents = [document.splitlines(keepends=True) for document in documents]
    count = sum(map(len, documents))
    left = count - count // 20
    train, held_out = [], []
    for lines in documents:
        train.append("".join(lines[:left]))
        held_out.append("".join(lines[left:]))
        left = max(0, left - len(lines))
    return [text for text in train if text], [text for text in held_out if text]
