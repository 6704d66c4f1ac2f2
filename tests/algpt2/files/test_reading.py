"""Files and JSON that may be anything."""

import json
import os

import pytest

from algpt2 import InputError
from algpt2.files.reading import DEPTH, LARGEST, open_ordinary, parse_json, read_bytes, read_json


def test_json_is_read_as_it_was_written(tmp_path):
    deep = 1
    for _ in range(DEPTH - 1):
        deep = [deep]
    content = {"text": "naïve \U0001f600 \n", "largest": LARGEST, "float": -0.5, "none": None, "deep": deep}
    for ascii in (True, False):
        (tmp_path / "a.json").write_text(json.dumps(content, ensure_ascii=ascii), encoding="utf-8")
        assert read_json(tmp_path / "a.json") == content
    assert parse_json(str(10**30), "text", largest=10**30) == 10**30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 10**5, "nested deeper than 64"),
        ("[" * (DEPTH + 1) + "]" * (DEPTH + 1), "nested deeper than 64"),
        (str(2**63), "an integer has more than 64 bits"),
        (f'{{"a": [-{2**64}]}}', "an integer has more than 64 bits"),
        ("1" * 10**5, "not readable as JSON"),
        # Halves of surrogate pairs, which cannot be written again.
        (r'{"a": ["\ud800"]}', "surrogates not allowed"),
        (r'{"\udfff": 1}', "surrogates not allowed"),
        (b'{"a": "\xe9"}', "not readable as JSON"),
        ("{}".encode("utf-16"), "not readable as JSON"),
        ("", "not readable as JSON"),
    ],
)
def test_json_that_is_not_believed(text, message):
    with pytest.raises(InputError, match=message):
        parse_json(text, "source")


def as_directory(path):
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is not an ordinary file"),
        (as_directory, "is a directory, not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not an ordinary file"),
        (lambda path: path.symlink_to("nowhere"), "no such file"),
        (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    ],
)
def test_what_is_no_ordinary_file(make, message, tmp_path):
    make(tmp_path / "a.json")
    with pytest.raises(InputError, match=message):
        read_bytes(tmp_path / "a.json")
    with pytest.raises(OSError), open(tmp_path / "a.json", "rb", opener=open_ordinary):
        pass
