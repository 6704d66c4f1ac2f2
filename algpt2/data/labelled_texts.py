"""Labelled texts: their files, and their tokens as rows."""

import csv
from dataclasses import dataclass

import numpy as np

from algpt2.data.files import json_lines, row_text
from algpt2.errors import InputError

CSV_ENDINGS, JSON_LINES_ENDINGS = (".csv", ".tsv"), (".jsonl", ".ndjson")


@dataclass
class LabelledTexts:
    """Texts of the classes that they belong to, as rows of tokens padded on the right.

    Args:
        ids: list of list of int, the tokens of each text, none longer than `length`.
        classes: int array (n,).
        length: int.
        pad_token_id: int.
    """

    ids: list
    classes: np.ndarray
    length: int
    pad_token_id: int

    def __len__(self):
        return len(self.ids)

    def rows(self, indices):
        """The tokens of some texts and their mask, int32 (n, length), 0 for padding.

        Example:
            >>> texts = LabelledTexts([[4, 5], [6]], np.array([1, 0]), length=3, pad_token_id=9)
            >>> texts.rows([0, 1])[0]
            array([[4, 5, 9],
                   [6, 9, 9]], dtype=int32)
        """
        ids = np.full((len(indices), self.length), self.pad_token_id, dtype=np.int32)
        mask = np.zeros_like(ids)
        for row, index in enumerate(indices):
            tokens = self.ids[index]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return ids, mask


def labelled_rows(path, text_column, label_column):
    """The texts of a file and their labels.

    Args:
        path: `Path`, of CSV, TSV or JSON lines.
        text_column, label_column: str.

    Returns:
        list of tuples of the text, its label and its place in the file, each a str.

    Raises:
        InputError: if it cannot be read, lacks a column, or has no rows, an empty text or an empty label.
    """
    ending = path.suffix.lower()
    if ending not in (*CSV_ENDINGS, *JSON_LINES_ENDINGS):
        raise InputError(f"{path}: --task classify reads {', '.join((*CSV_ENDINGS, *JSON_LINES_ENDINGS))}")
    read = _read_csv if ending in CSV_ENDINGS else json_lines
    rows = [(_text(row, text_column, place), _label(row, label_column, place), place) for row, place in read(path)]
    if not rows:
        raise InputError(f"{path}: holds no rows")
    return rows


def _read_csv(path):
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                # Of a row of another length the texts and the labels are not where the header says.
                found = sum(value is not None for name, value in row.items() if name) + len(row.get(None, ()))
                expected = len(reader.fieldnames)
                if found != expected:
                    raise InputError(
                        f"{place}: has {found} values, the header names {expected}; put a text that holds a comma in "
                        "quotes"
                    )
                yield row, place
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    except csv.Error as error:
        raise InputError(f"{path}: not readable as CSV ({error})") from error


def _text(row, column, place):
    text = row_text({str(name): value for name, value in row.items()}, column, place)
    if not text.strip():
        raise InputError(f"{place}: the text is empty; leave the row out")
    return text


def _label(row, column, place):
    if column not in row:
        raise InputError(f"{place}: no column {column!r}; give --label-column, one of {', '.join(map(str, row))}")
    label = row[column]
    if not isinstance(label, str | int):
        raise InputError(f"{place}: column {column!r} holds {type(label).__name__}, expected a text or an integer")
    if not str(label).strip():
        raise InputError(f"{place}: the label is empty; leave the row out")
    return str(label)
