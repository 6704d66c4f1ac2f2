"""Where text comes from, and how it is split."""

import pydoc_data.topics

import pytest

from algpt2.corpus import read_corpus
from algpt2.errors import InputError


def test_python_docs_are_the_topics_split_in_two():
    corpus = read_corpus("python-docs")
    topics = set(pydoc_data.topics.topics.values())
    assert set(corpus.train) | set(corpus.validation) == topics
    assert not set(corpus.train) & set(corpus.validation)
    share = sum(map(len, corpus.validation)) / sum(map(len, topics))
    assert 0.03 < share < 0.2


def test_files_and_globs(tmp_path):
    (tmp_path / "b.txt").write_text("second\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first ü\n" * 40, encoding="utf-8")
    corpus = read_corpus(str(tmp_path / "*.txt"), validation=str(tmp_path / "b.txt"))
    assert list(corpus.train) == ["first ü\n" * 40, "second\n"]
    assert list(corpus.validation) == ["second\n"]
    (tmp_path / "c.txt").write_text("third\n" * 10, encoding="utf-8")
    corpus = read_corpus(str(tmp_path / "[ac].txt"))
    assert (list(corpus.train), list(corpus.validation)) == (["first ü\n" * 40, "third\n" * 8], ["third\n" * 2])
    corpus = read_corpus(str(tmp_path / "a.txt"))
    assert (list(corpus.train), list(corpus.validation)) == (["first ü\n" * 38], ["first ü\n" * 2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "the file is empty"),
        (b"ok\xff\xfe", r"not UTF-8 text \(byte 2\)"),
        (b"one", "few"),
    ],
)
def test_wrong_files(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_corpus(str(path))
