"""Corpus, tokenizer and packing."""

import copy
import pydoc_data.topics

import numpy as np
import pytest
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from algpt2.corpus import read_corpus
from algpt2.errors import InputError
from algpt2.packing import Blocks, TokenizedText, TrainingOrder, pieces, tokenize
from algpt2.tokenization import load_tokenizer, train_tokenizer


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
    assert corpus.train == ["first ü\n" * 40, "second\n"]
    assert corpus.validation == ["second\n"]
    (tmp_path / "c.txt").write_text("third\n" * 10, encoding="utf-8")
    corpus = read_corpus(str(tmp_path / "[ac].txt"))
    assert (corpus.train, corpus.validation) == (["first ü\n" * 40, "third\n" * 8], ["third\n" * 2])
    corpus = read_corpus(str(tmp_path / "a.txt"))
    assert (corpus.train, corpus.validation) == (["first ü\n" * 38], ["first ü\n" * 2])


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


def test_the_tokenizer_survives_saving_and_is_transformers_own(text_tokenizer, tmp_path):
    text_tokenizer.save_pretrained(tmp_path)
    text = "def f(x):\n    return x + 1  # naïve ☃\n\n"
    for loaded in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.encode(text) == text_tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text
        assert loaded.eos_token_id == loaded.convert_tokens_to_ids("<|endoftext|>") == 0


def test_wrong_tokenizers(tmp_path):
    with pytest.raises(InputError, match="vocab_size 100 is too small"):
        train_tokenizer(["text"], 100)
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not readable as a tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_cut_documents_give_the_tokens_of_whole_ones(text_tokenizer, add_prefix_space):
    text_tokenizer = copy.deepcopy(text_tokenizer)
    text_tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    documents = [*read_corpus("python-docs").validation, "a\n\n \n b\n\tc  \n", "\n\n", "x"]
    stream = tokenize(documents, text_tokenizer).tokens
    expected = [i for document in documents for i in [*text_tokenizer.encode(document), 0]]
    np.testing.assert_array_equal(stream, expected)
    assert all("".join(pieces(document)) == document for document in documents)


def text_of(tokens):
    return TokenizedText(tokens, np.array([0, len(tokens)]), words=1, bytes=1)


def test_blocks_and_their_order():
    ids, mask = Blocks(text_of(np.arange(11)), 4).rows([1, 0])
    np.testing.assert_array_equal(ids, [[4, 5, 6, 7], [0, 1, 2, 3]])
    assert mask.all()
    with pytest.raises(InputError, match="3 tokens, fewer than one block of 4"):
        Blocks(text_of(np.arange(3)), 4)

    def order_of(sample_count, seed):
        order = TrainingOrder(block_count=10, sample_count=sample_count, seed=seed)
        assert len(order) == sample_count
        return order[np.arange(sample_count)]

    order = order_of(25, seed=3)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert list(order[:10]) != list(order[10:20])
    np.testing.assert_array_equal(order, order_of(25, seed=3))
    assert list(order) != list(order_of(25, seed=4))
    # A longer run starts as the shorter one.
    np.testing.assert_array_equal(order_of(40, seed=3)[:25], order)
