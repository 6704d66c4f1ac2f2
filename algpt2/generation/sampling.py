"""The choice of the next token from logits, in numpy."""

import numpy as np


def choose(logits, context, sampling, generator):
    """The next token.

    Args:
        logits: float (V,).
        context: sequence of int. The tokens so far.
        sampling: `algpt2.generation.continuation.Sampling`.
        generator: `numpy.random.Generator`, for what is drawn.

    Returns:
        int.

    Example:
        >>> from algpt2.generation.continuation import Sampling
        >>> choose(np.array([0.5, 2.0, 1.0]), [0], Sampling(), np.random.default_rng(0))
        1
    """
    if sampling.is_greedy:
        return int(_penalized(logits, context, sampling).argmax())
    probabilities = distribution(logits, context, sampling)
    return int(generator.choice(len(probabilities), p=probabilities))


def distribution(logits, context, sampling):
    """The probabilities, float64 (V,), that a token is drawn by; the arguments are those of `choose`."""
    logits = _penalized(logits, context, sampling) / (sampling.temperature or 1.0)
    if sampling.top_k:
        logits[logits < np.sort(logits)[-min(sampling.top_k, len(logits))]] = -np.inf
    if sampling.top_p:
        order = logits.argsort(kind="stable")
        unlikely = softmax(logits)[order].cumsum() <= 1 - sampling.top_p
        # The likeliest stays in any case.
        logits[order[:-1][unlikely[:-1]]] = -np.inf
    if sampling.min_p:
        probabilities = softmax(logits)
        logits[probabilities < sampling.min_p * probabilities.max()] = -np.inf
    return softmax(logits)


def _penalized(logits, context, sampling):
    """The logits, float64 (V,), with the penalty on the tokens so far."""
    logits = np.array(logits, "float64")
    if sampling.repetition_penalty != 1:
        seen = np.unique(context)
        penalty = np.where(logits[seen] < 0, sampling.repetition_penalty, 1 / sampling.repetition_penalty)
        logits[seen] *= penalty
    return logits


def softmax(logits):
    """The probabilities, float (V,), of logits (V,)."""
    odds = np.exp(logits - logits.max())
    return odds / odds.sum()


def log_softmax(logits):
    """The logarithms of the probabilities, float (..., V), of logits (..., V)."""
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
