"""Tokens, blocks and their order."""

import copy

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from algpt2.corpus import read_corpus
from algpt2.errors import InputError
from algpt2.packing import Blocks, TokenizedText, TrainingOrder, tokenize


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_cut_documents_give_the_tokens_of_whole_ones(text_tokenizer, add_prefix_space):
    text_tokenizer = copy.deepcopy(text_tokenizer)
    text_tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    documents = [*read_corpus("python-docs").validation, "a\n\n \n b\n\tc  \n", "\n\n", "x"]
    stream = tokenize(documents, text_tokenizer).tokens
    expected = [i for document in documents for i in [*text_tokenizer.encode(document), 0]]
    np.testing.assert_array_equal(stream, expected)


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
