"""The choice of tokens in numpy beside the logits processors of transformers."""

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from algpt2.generation.continuation import Sampling
from algpt2.generation.sampling import choose, distribution

LOGITS = np.random.default_rng(0).normal(0, 3, size=50)
CONTEXT = [3, 7, 7, 12]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_k": 90},
        {"top_p": 0.8},
        {"top_p": 0.01},
        {"min_p": 0.1},
        {"repetition_penalty": 1.7},
        {"temperature": 1.6, "top_k": 20, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 0.8},
    ],
)
def test_probabilities_are_those_of_transformers(options):
    makers = {
        "repetition_penalty": RepetitionPenaltyLogitsProcessor,
        "temperature": TemperatureLogitsWarper,
        "top_k": TopKLogitsWarper,
        "top_p": TopPLogitsWarper,
        "min_p": MinPLogitsWarper,
    }
    processors = LogitsProcessorList(makers[name](options[name]) for name in makers if name in options)
    expected = processors(torch.tensor([CONTEXT]), torch.tensor(LOGITS[None])).softmax(-1)[0].numpy()
    found = distribution(LOGITS, CONTEXT, Sampling(**options))
    assert np.abs(found - expected).max() < 1e-12


def test_tokens_are_drawn_by_their_probabilities():
    sampling, generator = Sampling(temperature=1.0, top_k=4), np.random.default_rng(1)
    drawn = [choose(LOGITS, CONTEXT, sampling, generator) for _ in range(4000)]
    expected = distribution(LOGITS, CONTEXT, sampling)
    assert np.abs(np.bincount(drawn, minlength=50) / 4000 - expected).max() < 0.03


@pytest.mark.slow
def test_without_a_choice_the_likeliest_is_taken():
    assert choose(LOGITS, CONTEXT, Sampling(), None) == LOGITS.argmax()
