"""The second moments of what enters each linear layer of a GPT-2 on a text, by numpy, one depth at a time."""

import itertools
import math

import numpy as np
from tqdm.auto import tqdm

from algpt2.checkpoints.formats.lazy_tensor import LazyTensor
from algpt2.data.corpus import Documents, has_splits, read_documents
from algpt2.data.tokenized_text import tokenize
from algpt2.errors import InputError
from convert.plain_gpt2 import as_gpt2

# The characters that a token has at most, on average over a text.
CHARACTERS = 16


def calibration_rows(checkpoint, dataset, count, length):
    """The first tokens of a text that a model is calibrated on.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`, with a tokenizer.
        dataset: str, as `--dataset`. Of data sets with splits the training part is read, of files everything.
        count: int. How many tokens.
        length: int. The tokens of a row.

    Returns:
        int array (rows, length); of a text that is shorter than one row, that row.

    Raises:
        algpt2.errors.InputError: if the text or the tokenizer is missing.
    """
    documents = read_documents(dataset, split="train" if has_splits(dataset) else None)
    texts = _beginning(documents, count * CHARACTERS)
    tokens = tokenize(Documents.of(texts, documents.name), checkpoint.require_tokenizer()).tokens[:count]
    if len(tokens) < length:
        return np.asarray(tokens)[None]
    return np.asarray(tokens[: len(tokens) // length * length]).reshape(-1, length)


def _beginning(documents, characters):
    """list of str: the first documents, of which nothing is read that exceeds so many characters."""
    texts = []
    for pieces in documents.pieces():
        letters = itertools.chain.from_iterable(piece.text for piece in pieces)
        texts.append("".join(itertools.islice(letters, characters)))
        characters -= len(texts[-1])
        if characters <= 0:
            break
    return texts


def input_moments(config, weights, rows, depths, directory):
    """The second moments E[x x^T] of the inputs of every linear layer of some depths.

    The states of all tokens are kept, float32 (tokens, H), and taken through the depths once; the moments of a depth go
    to files.

    Args:
        config: `ALGPT2Config`.
        weights: dict of str to numpy array or `algpt2.checkpoints.formats.lazy_tensor.LazyTensor`, canonical.
        rows: int array (rows, length), token ids.
        depths: list of int, at least one.
        directory: `Path` of an existing directory, for 8 (3 H^2 + I^2) bytes per depth.

    Returns:
        dict of (depth, linear layer) to `LazyTensor`, float64 (inputs, inputs).

    Raises:
        algpt2.errors.InputError: if the states are not finite.

    Example:
        >>> moments = input_moments(checkpoint.config, checkpoint.weights, rows, [0, 1], folder)  # doctest: +SKIP
    """
    config, plain = as_gpt2(config, weights, lossy=True)
    states = np.asarray(plain["transformer.wte.weight"])[rows].astype("float32")
    states += np.asarray(plain["transformer.wpe.weight"], "float32")[: rows.shape[1]]
    moments = {}
    total = (max(depths) + 1) * len(rows)
    with tqdm(desc="calibrating", total=total, unit="row", leave=False, delay=2, disable=None) as bar:
        for depth in range(max(depths) + 1):
            prefix = f"transformer.h.{depth}."
            block = {name.removeprefix(prefix): plain[name] for name in plain if name.startswith(prefix)}
            block = {name: np.asarray(tensor, "float32") for name, tensor in block.items()}
            sums = {name: np.zeros((size, size)) for name, (size, _) in config.linear_layers.items()}
            for row in states:
                _apply(config, block, row, sums if depth in depths else None)
                bar.update()
            if not np.isfinite(states).all():
                raise InputError(f"--calibration: the states after depth {depth} are not finite; compress without it")
            for name, summed in sums.items() if depth in depths else ():
                moments[depth, name] = _stored(summed / rows.size, directory / f"{depth}.{name}.npy")
    return moments


def _stored(array, path):
    np.save(path, array)
    return LazyTensor(array.shape, array.dtype, lambda: np.load(path, mmap_mode="r"))


def _apply(config, block, states, sums):
    """Take the states (length, H) of one row through a block, in place, and add to the sums of its inputs' moments."""

    def linear(name, inputs):
        if sums is not None:
            # In float64: the moments of GPT-2 span so many magnitudes that float32 leaves them indefinite.
            exact = inputs.astype("float64")
            sums[name] += exact.T @ exact
        return inputs @ block[f"{name}.weight"].T + block[f"{name}.bias"]

    def norm(name, inputs):
        centered = inputs - inputs.mean(-1, keepdims=True)
        scale = np.sqrt(np.square(centered).mean(-1, keepdims=True) + config.layer_norm_epsilon)
        return centered / scale * block[f"{name}.weight"] + block[f"{name}.bias"]

    projected = linear("attn.c_attn", norm("ln_1", states))
    states += linear("attn.c_proj", _attention(projected, config.n_head))
    inner = ACTIVATION_FUNCTIONS[config.activation_function](linear("mlp.c_fc", norm("ln_2", states)))
    states += linear("mlp.c_proj", inner)


def _attention(projected, heads):
    """Causal attention, of queries, keys and values (length, 3 H) to (length, H)."""
    length = len(projected)
    # (3, heads, length, H / heads)
    query, key, value = projected.reshape(length, 3, heads, -1).transpose(1, 2, 0, 3)
    future = np.triu(np.full((length, length), -np.inf, "float32"), 1)
    result = np.empty_like(query)
    for head in range(heads):
        scores = query[head] @ key[head].T / np.float32(math.sqrt(query.shape[-1])) + future
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        result[head] = scores / scores.sum(-1, keepdims=True) @ value[head]
    return result.transpose(1, 0, 2).reshape(length, -1)


def _sigmoid(x):
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _gelu(x):
    # The error function of Abramowitz and Stegun, 7.1.26, within 1.5e-7.
    t = 1 / (1 + 0.3275911 / math.sqrt(2) * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    return 0.5 * x * (1 + np.sign(x) * (1 - series * np.exp(-0.5 * x * x)))


def _gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


# Of `algpt2.configuration.ACTIVATIONS`.
ACTIVATION_FUNCTIONS = {
    "gelu": _gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "swish": lambda x: x * _sigmoid(x),
    "tanh": np.tanh,
}
