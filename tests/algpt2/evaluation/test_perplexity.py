"""The protocols against plain loops over tokens, and what is computed from a loss."""

import itertools
import json
import math

import numpy as np
import pytest

from algpt2.data.tokenized_text import TokenizedText, tokenize
from algpt2.errors import InputError
from algpt2.evaluation.perplexity import Evaluation, evaluate
from algpt2.evaluation.report import evaluation_table, record

DRAW = np.random.default_rng(0)
TOKENS = DRAW.integers(20, size=31).astype("uint16")
LINES = [0, 4, 5, 5, 17, 24, 31]
TABLE = DRAW.random((20, 20)) * 3
TEXT = TokenizedText(TOKENS, np.array(LINES), words=12, bytes=150)


def loss_of(context, token):
    """A loss that depends on all of the context and on the order of its tokens."""
    return TABLE[context[-1], token] + 0.1 * len(context) + sum(0.01 * i * int(t) for i, t in enumerate(context))


def token_losses(ids):
    """`loss_of` as `evaluate` takes it: for every token of a row but the first, given those before it in the row."""
    assert ids.dtype == np.int32
    return np.array([[loss_of(row[:i], row[i]) for i in range(1, len(row))] for row in ids.tolist()])


def expected_losses(protocol, length, stride):
    """What the docstring of `evaluate` says, token by token."""
    losses = []
    if protocol == "stream":
        for i in range(len(TOKENS)):
            if i % length:
                losses.append(loss_of(TOKENS[i - i % length : i], TOKENS[i]))
    elif protocol == "line":
        for start, end in itertools.pairwise(LINES):
            line = TOKENS[start:end][:length]
            losses += [loss_of(line[:i], line[i]) for i in range(1, len(line))]
    else:
        for i in range(1, len(TOKENS)):
            # The first window that reaches the token.
            start = max(0, -(-(i - length + 1) // stride) * stride)
            if start < i:
                assert i - start >= min(i, length - stride)
                losses.append(loss_of(TOKENS[start:i], TOKENS[i]))
    return losses


LENGTHS = (2, 5, 8, 30, 31, 40)
STRIDES = [("sliding", length, stride) for length in LENGTHS for stride in (1, 2, 4, 39) if stride <= length]


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    ("protocol", "length", "stride"), [(name, n, None) for name in ("stream", "line") for n in LENGTHS] + STRIDES
)
def test_protocols_against_plain_loops(protocol, length, stride, batch_size):
    result = evaluate(token_losses, TEXT, length, batch_size, protocol, stride)
    losses = expected_losses(protocol, length, stride)
    assert result.tokens == len(losses)
    assert math.isclose(result.loss, sum(losses) / len(losses), rel_tol=1e-12)
    assert math.isclose(result.perplexity, math.exp(result.loss), rel_tol=1e-12)
    assert (result.protocol, result.length, result.stride) == (protocol, length, stride)
    if protocol == "sliding" and stride < length:
        assert result.tokens == len(TOKENS) - 1


@pytest.mark.parametrize("length", [2, 5, 8])
def test_sliding_by_a_whole_row_is_the_stream(length):
    stream = evaluate(token_losses, TEXT, length, 3)
    sliding = evaluate(token_losses, TEXT, length, 3, "sliding", stride=length)
    assert (sliding.tokens, sliding.loss) == (stream.tokens, stream.loss)


def test_no_batch_is_larger_than_asked():
    shapes = []

    def losses(ids):
        shapes.append(ids.shape)
        return np.zeros((len(ids), ids.shape[1] - 1))

    text = TokenizedText(np.zeros(10_000, dtype="uint16"), np.arange(0, 10_001, 50), words=1, bytes=1)
    for protocol in ("stream", "line", "sliding"):
        evaluate(losses, text, 20, 8, protocol)
    assert max(rows for rows, _ in shapes) <= 8 and max(width for _, width in shapes) <= 20


def test_word_perplexity_and_bits_per_byte_by_hand():
    # 30 tokens of one bit each, in 10 words and 60 bytes: three bits a word, half a bit a byte.
    result = Evaluation("stream", math.log(2), 28, 16, None, text_tokens=30, words=10, bytes=60)
    assert math.isclose(result.perplexity, 2)
    assert math.isclose(result.word_perplexity, 8)
    assert math.isclose(result.bits_per_byte, 0.5)


def test_words_and_bytes_of_a_text(text_tokenizer):
    documents = ["Two words\nand naïve ones\n\n", "☃\n"]
    for by in ("document", "line"):
        text = tokenize(documents, text_tokenizer, by)
        result = evaluate(lambda ids: np.ones((len(ids), ids.shape[1] - 1)), text, 8, 2, "stream")
        assert math.isclose(result.word_perplexity, math.exp(len(text.tokens) / 6))
        assert math.isclose(result.bits_per_byte, len(text.tokens) / math.log(2) / (27 + 4))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (TEXT, {"protocol": "sliding", "stride": 9}, "--stride 9 must be 1 to the tokens of a row, 8"),
        (TokenizedText(TOKENS, np.arange(32), 1, 1), {"protocol": "line"}, "no token to predict"),
        (TokenizedText(TOKENS[:1], np.array([0, 1]), 1, 1), {}, "no token to predict"),
        (TokenizedText(TOKENS[:1], np.array([0, 1]), 1, 1), {"protocol": "sliding"}, "no token to predict"),
    ],
)
def test_what_cannot_be_evaluated(text, options, message):
    with pytest.raises(InputError, match=message):
        evaluate(token_losses, text, 8, 2, **options)


def test_records_are_strict_json_whatever_the_loss():
    values = {"protocol": "stream", "tokens": 28, "length": 16, "stride": None, "text_tokens": 30, "bytes": 60}
    for loss, words in ((2.0, 0), (math.nan, 10), (1e4, 10)):
        row = record(Evaluation(loss=loss, words=words, **values), depth=3, framework="PyTorch")
        assert json.loads(json.dumps(row, allow_nan=False))["word_perplexity"] is None
        assert evaluation_table([row, row]).count("\n") == 3
