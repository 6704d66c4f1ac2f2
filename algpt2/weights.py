"""Canonical weights: the names and shapes that a configuration implies, and the one check of every reader."""

import math

import ml_dtypes
import numpy as np

from algpt2.errors import InputError

DTYPES = {
    "float64": np.dtype("float64"),
    "float32": np.dtype("float32"),
    "float16": np.dtype("float16"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def weight_shapes(config):
    """The name and shape of every canonical weight, in PyTorch's names and (out, in) layout; tied tensors once.

    These are the weights of the language model; `sop_shapes` are those that a model for pretraining has besides.

    Args:
        config: `ALGPT2Config`.

    Returns:
        dict of str to tuple of int.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> weight_shapes(ALGPT2Config())["transformer.project_in.weight"]
        (768, 128)
    """
    hidden, embedding, inner = config.n_embd, config.embedding_width, config.inner_width
    shapes = {
        "transformer.wte.weight": (config.vocab_size, embedding),
        "transformer.wpe.weight": (config.n_positions, embedding),
    }
    if config.is_factorized:
        shapes["transformer.project_in.weight"] = (hidden, embedding)
        shapes["transformer.project_in.bias"] = (hidden,)
    for block in range(config.n_block):
        prefix = f"transformer.h.{block}"
        for norm in ("ln_1", "ln_2"):
            shapes[f"{prefix}.{norm}.weight"] = shapes[f"{prefix}.{norm}.bias"] = (hidden,)
        for name, inputs, outputs in (
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, inner),
            ("mlp.c_proj", inner, hidden),
        ):
            shapes[f"{prefix}.{name}.weight"] = (outputs, inputs)
            shapes[f"{prefix}.{name}.bias"] = (outputs,)
    shapes["transformer.ln_f.weight"] = shapes["transformer.ln_f.bias"] = (hidden,)
    if config.is_factorized:
        if not config.tie_projections:
            shapes["project_out.weight"] = (embedding, hidden)
        shapes["project_out.bias"] = (embedding,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, embedding)
    return shapes


def sop_shapes(config):
    """The name and shape of the weights of the sentence-order head, which a checkpoint has both or neither of.

    Args:
        config: `ALGPT2Config`.

    Returns:
        dict of str to tuple of int.
    """
    return {"sop_classifier.weight": (2, config.n_embd), "sop_classifier.bias": (2,)}


def parameter_count(config):
    """The number of parameters of a language model with this configuration; tied tensors count once.

    A sentence-order head adds `2 * n_embd + 2`, which are not counted: only pretraining uses them.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> parameter_count(ALGPT2Config())
        13850880
    """
    return sum(math.prod(shape) for shape in weight_shapes(config).values())


def check_weights(config, weights, source="checkpoint"):
    """Raise unless `weights` are exactly those of `config`: every tensor once, in shape, of a finite float type.

    The sentence-order head may be there or not.

    Args:
        config: `ALGPT2Config`.
        weights: dict of str to numpy array.
        source: str. Names the weights in the error.

    Raises:
        InputError: lists everything missing, unexpected, misshapen or not finite.
    """
    shapes = weight_shapes(config)
    if not weights.keys().isdisjoint(sop_shapes(config)):
        shapes |= sop_shapes(config)
    faults = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in weights]
    for name, tensor in weights.items():
        if name not in shapes:
            faults.append(f"unexpected: {name} {tensor.shape}")
        elif tensor.shape != shapes[name]:
            faults.append(f"misshapen: {name} is {tensor.shape}, expected {shapes[name]}")
        elif tensor.dtype not in DTYPES.values():
            faults.append(f"not a float type: {name} is {tensor.dtype}")
        elif not np.isfinite(tensor).all():
            faults.append(f"not finite: {name} holds NaN or infinity")
    if faults:
        listing = "\n  ".join(faults)
        raise InputError(f"{source}: {len(faults)} tensors do not fit the configuration\n  {listing}")


def cast_weights(weights, dtype):
    """The weights in another dtype.

    Args:
        weights: dict of str to numpy array.
        dtype: str, one of `DTYPES`.

    Raises:
        InputError: if a value is too large for the dtype.
    """
    with np.errstate(over="ignore"):
        cast = {name: array.astype(DTYPES[dtype]) for name, array in weights.items()}
    overflowed = [name for name, array in cast.items() if not np.isfinite(array).all()]
    if overflowed:
        raise InputError(f"{', '.join(overflowed)}: too large for {dtype}; choose another --dtype")
    return cast
