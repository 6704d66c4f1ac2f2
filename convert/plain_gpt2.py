"""Any ALGPT2 as a plain GPT-2 that computes the same, so that every runtime of GPT-2 runs it."""

from dataclasses import replace

import numpy as np

from algpt2.checkpoints.casting import Casting, common_dtype
from algpt2.checkpoints.checkpoint import opened, write_dialect
from algpt2.checkpoints.formats import KERAS, SAFETENSORS
from algpt2.checkpoints.formats.lazy_tensor import LazyTensor, RowwiseTensor, lazy
from algpt2.checkpoints.weight_maps.gpt2 import KERAS_HUB, KERAS_HUB_FIXED, PYTORCH, as_gpt2_config
from algpt2.checkpoints.weights import (
    LANGUAGE_MODELS,
    architecture,
    fold_residual_multiplier,
    head_shapes,
    names_at_depth,
)
from algpt2.configuration import WITHOUT_DEPTHS, ALGPT2Config
from algpt2.errors import InputError
from convert.conversion import STALE, new_target, read_metadata, write_conversion, write_metadata

# The part of project_out's bias that may be missed: rounding error.
EXACT = 1e-9
# The projections, which are multiplied into the embeddings and the head, and the bias that takes up project_out's.
SMALL_FACTORS = ("transformer.project_in.", "transformer.project_out.", "transformer.ln_f.bias")


def to_gpt2(directory, output, dtype=None, force=False, max_shard_size=None, lossy=False, keras_hub=False):
    """Write a plain GPT-2 with the logits of an ALGPT2.

    Every depth gets a copy of its block, with its own norms and biases; low-rank additions and the residual multiplier
    are multiplied into the matrices. The embeddings are multiplied by project_in, the head by project_out. The bias of
    project_in goes into the position embeddings, that of project_out into the bias of ln_f.

    Args:
        directory: path. A checkpoint in any of `algpt2.checkpoints.weight_maps.DIALECTS`.
        output: path of a new directory.
        dtype, force, max_shard_size: as in `convert.conversion.pt2tf`; products of half-precision matrices are kept in
            float32 by default.
        lossy: bool. Whether to write also what cannot be exact.
        keras_hub: bool. Whether to write a preset of KerasHub's `GPT2CausalLM` instead of transformers' files.

    Returns:
        `convert.conversion.Conversion`.

    Raises:
        algpt2.errors.InputError: if the checkpoint cannot be read, there is no GPT-2 that computes the same, or the
            target is there already or cannot be written.

    Example:
        >>> to_gpt2("runs/demo", "runs/demo-gpt2")  # doctest: +SKIP
    """
    if keras_hub and max_shard_size:
        raise InputError("--max-shard-size is for the files of transformers; leave it out with --keras-hub")
    checkpoint = opened(directory)
    target = new_target(checkpoint, output, force)
    metadata = read_metadata(checkpoint)
    if keras_hub:
        _require_keras_hub(checkpoint)
    config, weights = as_gpt2(metadata.config, checkpoint.weights, lossy)
    dtype = dtype or common_dtype(weights)

    def write(directory, cast):
        if keras_hub:
            from algpt2_tf.keras_hub_gpt2 import save_preset

            write_dialect(directory, KERAS, KERAS_HUB, config, weights, dtype, "1TB", cast)
            save_preset(directory, config, metadata.tokenizer, dtype)
        else:
            write_dialect(directory, SAFETENSORS, PYTORCH, config, weights, dtype, max_shard_size or "5GB", cast)
            theirs = as_gpt2_config(config)
            theirs.architectures = [architecture(weights).removeprefix("AL")]
            write_metadata(directory, replace(metadata, config=theirs), dtype)

    return write_conversion(checkpoint, target, weights, Casting(dtype, checkpoint.path), write, STALE)


def as_gpt2(config, weights, lossy=False):
    """The configuration and the weights of a GPT-2 with the logits of an ALGPT2.

    With the embeddings W (V, E), the positions P, project_in x -> A x + a and project_out y -> B y + b, the sum of
    embeddings that enters the first block is (W A^T) + (P A^T + a), and the logits of a final state y are W (B y + b) =
    (W B) (y + s) for every s with B s = b, which the pseudo-inverse of B gives if its rows are independent.

    Args:
        config: `ALGPT2Config`.
        weights: dict of str to numpy array or `algpt2.checkpoints.formats.lazy_tensor.LazyTensor`, canonical. A
            sentence-order head is left out; another one takes the place of the language model's.
        lossy: bool. Whether to give the nearest GPT-2 where there is no exact one.

    Returns:
        tuple of an `ALGPT2Config` without sharing and factorization, and its canonical weights.

    Raises:
        algpt2.errors.InputError: if there is no exact one and it is not `lossy`.
    """
    config, weights = fold_residual_multiplier(config, weights)
    changes = {
        "layer_schedule": list(range(config.n_layer)),
        **{"trained_schedule": None, **WITHOUT_DEPTHS},
        **{"embedding_size": None, "tie_projections": False},
    }
    result = dict(_blocks(config, weights))
    result |= {name: weights[name] for name in weights if name.startswith(("transformer.w", "transformer.ln_f."))}
    has_lm_head = architecture(weights) in LANGUAGE_MODELS
    if not has_lm_head:
        # What reads the final states of width H reads the same ones of a GPT-2.
        result |= {name: weights[name] for name in head_shapes(config)[architecture(weights)]}
    elif not config.tie_word_embeddings:
        result["lm_head.weight"] = weights["lm_head.weight"]
    if config.is_factorized:
        dtype = "float64" if common_dtype(weights) == "float64" else "float32"
        exact = {name: np.asarray(weights[name], "float64") for name in weights if name.startswith(SMALL_FACTORS)}
        project_in = exact["transformer.project_in.weight"]
        embedding, positions = weights["transformer.wte.weight"], weights["transformer.wpe.weight"]
        result |= {
            "transformer.wte.weight": _product(embedding, project_in.T, dtype),
            "transformer.wpe.weight": _product(positions, project_in.T, dtype, exact["transformer.project_in.bias"]),
        }
    if config.is_factorized and has_lm_head:
        project_out = project_in.T if config.tie_projections else exact["transformer.project_out.weight"]
        shift = _shift(project_out, exact["transformer.project_out.bias"], lossy)
        head = embedding if config.tie_word_embeddings else weights["lm_head.weight"]
        result["transformer.ln_f.bias"] = (exact["transformer.ln_f.bias"] + shift).astype(dtype)
        changes["tie_word_embeddings"] = config.tie_word_embeddings and config.tie_projections
        if not changes["tie_word_embeddings"]:
            result["lm_head.weight"] = _product(head, project_out, dtype)
    return ALGPT2Config.from_dict(config.to_dict(), **changes), result


def _blocks(config, weights):
    for depth in range(config.n_layer):
        names = names_at_depth(config, depth)
        for name, canonical in names.items():
            product, _, kind = name.rpartition(".")
            if kind == "weight" and f"{product}.down" in names:
                parts = (weights[names[f"{product}.{part}"]] for part in ("weight", "up", "down"))
                yield f"transformer.h.{depth}.{name}", _with_addition(*parts)
            elif kind in ("weight", "bias"):
                yield f"transformer.h.{depth}.{name}", weights[canonical]


def _with_addition(matrix, up, down):
    """The matrix plus up down, in float32, or float64 where it was."""
    dtype = "float64" if matrix.dtype == "float64" else "float32"

    def load():
        shared, left, right = (np.asarray(part, "float64") for part in (matrix, up, down))
        return (shared + left @ right).astype(dtype)

    return LazyTensor(matrix.shape, dtype, load)


def _product(rows, matrix, dtype, bias=0.0):
    """A tensor times a matrix plus a bias, in float64 so that nothing is rounded but the result."""
    return RowwiseTensor(lazy(rows), matrix.shape[1], dtype, lambda some: some.astype("float64") @ matrix + bias)


def _shift(project_out, bias, lossy):
    """The s with project_out s = bias, for matrix (E, H) and vector (E,)."""
    shift, _, rank, _ = np.linalg.lstsq(project_out, bias)
    missed = np.abs(project_out @ shift - bias).max() / (np.abs(bias).max() or 1.0)
    if missed > EXACT and not lossy:
        raise InputError(
            f"no GPT-2 computes exactly the same: project_out.weight {project_out.shape} has rank {rank}, and "
            f"{missed:.2g} of project_out.bias is outside its range; to-gpt2 --lossy writes the nearest one"
        )
    return shift


def _require_keras_hub(checkpoint):
    if not checkpoint.is_language_model:
        raise InputError(f"{checkpoint.path}: is of {checkpoint.architecture}; KerasHub's GPT-2 has no such head")
    for name, expected in KERAS_HUB_FIXED.items():
        found = getattr(checkpoint.config, name)
        if found != expected:
            raise InputError(f"{name} is {found!r}; KerasHub's GPT-2 computes {expected!r} only")
