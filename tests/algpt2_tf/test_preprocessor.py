"""The Keras tokenizer gives the ids of the fast tokenizer, in and out of graph mode."""

import numpy as np
import pytest
import tensorflow as tf

from algpt2.data.corpus import read_corpus
from algpt2_tf import TFALGPT2CausalLMPreprocessor, TFALGPT2Tokenizer

ODD_TEXTS = [
    "",
    " ",
    "\n\n  \n",
    "<|endoftext|>",
    "a<|endoftext|>b",
    "  two  spaces",
    "tab\tx",
    "naïve ☃ ६ 𝄞",
    "I'm we'll",
]


@pytest.fixture(scope="module")
def lines():
    corpus = read_corpus("python-docs")
    return ODD_TEXTS + [line for text in [*corpus.train, *corpus.validation] for line in text.splitlines(keepends=True)]


@pytest.fixture(scope="module")
def layer(text_tokenizer):
    return TFALGPT2Tokenizer(text_tokenizer.backend_tokenizer)


def test_every_line_of_a_text_has_the_same_ids(layer, lines, text_tokenizer):
    expected = text_tokenizer(lines)["input_ids"]
    assert len(lines) > 10_000
    assert [list(row) for row in layer(lines)] == expected

    graph = tf.function(layer.tokenize, input_signature=[tf.TensorSpec([None], tf.string)])
    assert graph(tf.constant(lines)).to_list() == expected
    batched = tf.data.Dataset.from_tensor_slices(lines).batch(1000).map(layer)
    assert [row for batch in batched for row in batch.to_list()] == expected
    one_by_one = tf.data.Dataset.from_tensor_slices(lines[:500]).map(layer)
    assert [row.numpy().tolist() for row in one_by_one] == expected[:500]


def test_text_comes_back(layer, lines):
    assert list(layer.detokenize(layer(lines))) == lines
    assert layer.detokenize(layer("one text")) == "one text"


def test_vocabulary(layer, text_tokenizer):
    assert layer.vocabulary_size() == len(text_tokenizer)
    assert set(layer.get_vocabulary()) == set(text_tokenizer.get_vocab())
    assert layer.token_to_id("<|endoftext|>") == layer.end_token_id == 0
    assert layer.id_to_token(0) == "<|endoftext|>"
    with pytest.raises(ValueError, match="'nonsense token' is not in the vocabulary"):
        layer.token_to_id("nonsense token")
    with pytest.raises(ValueError, match="id 600000 is not in the vocabulary"):
        layer.id_to_token(600_000)
    with pytest.raises(ValueError, match="the tokenizer is empty"):
        TFALGPT2Tokenizer().tokenize("text")


@pytest.mark.parametrize("add_start_token", [False, True])
def test_preprocessor_makes_inputs_targets_and_weights(layer, text_tokenizer, add_start_token):
    preprocessor = TFALGPT2CausalLMPreprocessor(layer, sequence_length=8, add_start_token=add_start_token)
    ids = [0] * add_start_token + text_tokenizer.encode("The value") + [0]
    x, y, weights = preprocessor(["The value"])
    assert np.asarray(x["token_ids"])[0, : len(ids)].tolist() == ids
    assert np.asarray(x["padding_mask"])[0].tolist() == [1] * len(ids) + [0] * (8 - len(ids))
    assert np.asarray(y)[0, : len(ids) - 1].tolist() == ids[1:]
    assert np.asarray(weights)[0].tolist() == [1] * (len(ids) - 1) + [0] * (9 - len(ids))
    generated = preprocessor.generate_preprocess(["The value"], sequence_length=8)
    assert np.asarray(generated["token_ids"])[0, : len(ids) - 1].tolist() == ids[:-1]
    assert np.sum(generated["padding_mask"]) == len(ids) - 1


def test_a_text_that_is_cut_has_no_end(layer, text_tokenizer):
    ids = text_tokenizer.encode("The value of an object is its value.")
    for length in range(len(ids) - 2, len(ids) + 3):
        expected = [*ids, layer.end_token_id][: length + 1]
        preprocessor = TFALGPT2CausalLMPreprocessor(layer, sequence_length=length)
        in_graph = tf.data.Dataset.from_tensors(["The value of an object is its value."]).map(preprocessor)
        for x, y, weights in (preprocessor(["The value of an object is its value."]), next(iter(in_graph))):
            assert np.shape(x["token_ids"]) == np.shape(y) == np.shape(weights) == (1, length)
            mask, weights = np.asarray(x["padding_mask"]) == 1, np.asarray(weights) == 1
            assert np.asarray(x["token_ids"])[mask].tolist() == expected[:length]
            assert np.asarray(y)[weights].tolist() == expected[1:]
