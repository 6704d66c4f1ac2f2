"""Continuing past the context, and text as it comes."""

import itertools

import numpy as np
import pytest

from algpt2.generation.continuation import (
    TOKENS_BETWEEN_STOPS,
    StopTexts,
    TextStream,
    continue_text,
    continue_tokens,
)

STOP = 99


def recording(contexts, emitted=0):
    """A model that counts on from the sum of its context, and emits some tokens early."""

    def generate(context, count, emit):
        contexts.append(list(context))
        new = [(sum(context) + i) % 90 for i in range(count)]
        for token in new[: min(emitted, count)]:
            emit(token)
        return new

    return generate


@pytest.mark.parametrize("emitted", [0, 1, 100])
@pytest.mark.parametrize(("n_positions", "prompt_length"), [(8, 3), (8, 7), (8, 8), (8, 30), (7, 7), (2, 1), (3, 5)])
def test_a_full_context_loses_its_older_half(n_positions, prompt_length, emitted):
    contexts, put = [], []
    prompt = list(range(prompt_length))
    new = continue_tokens(recording(contexts, emitted), prompt, 21, n_positions, STOP, put.append)
    assert len(new) == 21 and put == new
    tokens, place = prompt + new, prompt_length
    for i, context in enumerate(contexts):
        assert context == tokens[place - len(context) : place]
        if i or prompt_length >= n_positions:
            assert len(context) == np.ceil(n_positions / 2)
        else:
            assert context == prompt
        place = min(place + n_positions - len(context), len(tokens))
    assert place == len(tokens)


def test_a_stop_token_ends_the_text_and_is_not_put():
    put = []
    new = continue_tokens(lambda context, count, emit: [5, STOP][:count], [1], 20, 4, STOP, put.append)
    assert new == [5, STOP] and put == [5]


@pytest.mark.parametrize("text", ["naïve ☃ 日本 \ufffd🎉🎉\n end", "plain words", "\n\n"])
def test_characters_over_several_tokens_come_whole(text_tokenizer, text):
    prompt = "Größe: "
    ids, parts = text_tokenizer.encode(text), []
    # A tokenizer of Python's documentation has no token for most of these characters.
    assert text.isascii() or len(ids) > len(text)
    generate = lambda context, count, emit: [*ids, 0]  # noqa: E731
    continue_text(generate, text_tokenizer, prompt, 100, 200, parts.append)
    assert "".join(parts) == text
    assert all("\ufffd" not in part or "\ufffd" in text for part in parts)
    assert len(parts) > 1 or text == "\n\n"


@pytest.mark.parametrize("seed", range(5))
def test_stop_texts_end_a_text_before_the_first_of_them_wherever_it_is_cut(seed):
    draw = np.random.default_rng(seed)
    text = "".join(draw.choice(list("ab"), size=60))
    stops = ["".join(draw.choice(list("ab"), size=size)) for size in (5, 7)]
    cuts = [0, *sorted(draw.integers(0, 60, size=20).tolist()), 60]
    parts = []
    found = StopTexts(stops, parts.append)
    for start, end in itertools.pairwise(cuts):
        found.write(text[start:end])
        # Nothing is held back that cannot become one of them.
        assert found.found or len(text[:end]) - len("".join(parts)) < 7
    found.end()
    first = min((text.index(stop) for stop in stops if stop in text), default=None)
    assert "".join(parts) == text[:first] and found.found == (first is not None)


def test_no_token_is_made_long_after_a_stop_text(text_tokenizer):
    made, parts = [], []

    def generate(context, count, emit):
        new = text_tokenizer.encode("word " * 100)[:count]
        made.extend(new)
        return new

    continue_text(generate, text_tokenizer, "A ", 500, 1000, parts.append, stop=["d w"])
    assert "".join(parts) == "wor" and len(made) == TOKENS_BETWEEN_STOPS


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_text_of_any_tokens_is_that_of_the_tokenizer(text_tokenizer, seed):
    ids = np.random.default_rng(seed).integers(1, 300, size=200).tolist()
    parts = []
    stream = TextStream(text_tokenizer, ids[:3], parts.append)
    for token in ids[3:]:
        stream.put(token)
    stream.end()
    assert text_tokenizer.decode(ids[:3]) + "".join(parts) == text_tokenizer.decode(ids)
    assert len(parts) > 20
