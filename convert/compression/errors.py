"""How near a compressed model is to its source, matrix by matrix."""

from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from algpt2.checkpoints.formats.lazy_tensor import row_slices
from algpt2.checkpoints.weights import parameter_count
from algpt2.tables import markdown_table
from convert.compression.low_rank import squared_length
from convert.plain_gpt2 import as_gpt2

EMBEDDINGS = {"tokens": "transformer.wte.weight", "positions": "transformer.wpe.weight", "head": "lm_head.weight"}


@dataclass(frozen=True)
class Errors:
    """The relative errors of a compressed model: the size of the difference over that of what there was.

    Args:
        schedule: list of int, the block at each depth.
        parameters: tuple of int, before and after.
        embeddings: dict of `EMBEDDINGS` to float.
        weights: dict of (depth, linear layer) to float.
        outputs: the same of what they give for their inputs, at the depths of shared blocks; empty without moments.
    """

    schedule: list
    parameters: tuple
    embeddings: dict
    weights: dict
    outputs: dict


def relative_errors(config, weights, new_config, new_weights, moments=None):
    """Compare the weights of a compressed model, multiplied out, with those of its source.

    Args:
        config, weights, new_config: as in `convert.compression.model.compressed`.
        new_weights: dict of str to numpy array or `algpt2.checkpoints.formats.lazy_tensor.LazyTensor`, canonical.
        moments: as in `convert.compression.model.compressed`; they give the errors of outputs.

    Returns:
        `Errors`.
    """
    _, old = as_gpt2(config, weights, lossy=True)
    _, new = as_gpt2(new_config, new_weights, lossy=True)
    names = [(depth, linear) for depth in range(config.n_layer) for linear in config.linear_layers]
    of_weights, of_outputs = {}, {}
    for depth, linear in tqdm(names, desc="comparing", unit="matrix", leave=False, delay=2, disable=None):
        name = f"transformer.h.{depth}.{linear}.weight"
        matrix = np.asarray(old[name], "float64")
        difference = matrix - np.asarray(new[name])
        of_weights[depth, linear] = _relative(squared_length(difference), squared_length(matrix))
        if moments and (depth, linear) in moments:
            moment = np.asarray(moments[depth, linear])
            lengths = squared_length(difference, moment), squared_length(matrix, moment)
            of_outputs[depth, linear] = _relative(*lengths)
    embeddings = {}
    for title, name in EMBEDDINGS.items():
        tied = EMBEDDINGS["tokens"]
        embeddings[title] = _relative_difference(old.get(name, old[tied]), new.get(name, new[tied]))
    counts = parameter_count(config), parameter_count(new_config)
    return Errors(new_config.layer_schedule, counts, embeddings, of_weights, of_outputs)


def error_table(errors):
    """The errors as a Markdown table, a row for each depth.

    Args:
        errors: `Errors`.

    Returns:
        str.
    """
    linear_layers = list(dict.fromkeys(linear for _, linear in errors.weights))
    columns = [(linear, errors.weights) for linear in linear_layers]
    columns += [(f"{linear} outputs", errors.outputs) for linear in linear_layers if errors.outputs]
    rows = [["depth", "block", *(title for title, _ in columns)]]
    for depth, block in enumerate(errors.schedule):
        found = [values.get((depth, title.removesuffix(" outputs"))) for title, values in columns]
        rows.append([depth, block, *("" if value is None else f"{value:.4f}" for value in found)])
    return markdown_table(rows)


def _relative(difference, total):
    """float: the root of a ratio of squared lengths; what is nothing has no error."""
    return float(np.sqrt(max(difference, 0.0) / total)) if total else 0.0


def _relative_difference(old, new):
    old, new = np.asarray(old), np.asarray(new)
    total = difference = 0.0
    for part in row_slices(old):
        rows = old[part].astype("float64")
        total += squared_length(rows)
        difference += squared_length(rows - new[part])
    return _relative(difference, total)
