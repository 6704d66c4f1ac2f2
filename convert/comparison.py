"""What comparisons of two models have in common: the token ids, the tolerances, the logits and the table."""

import dataclasses
from dataclasses import dataclass

import numpy as np

from algpt2.tables import markdown_table

# The largest difference, relative to the largest value, by the dtype of the computation.
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}


@dataclass(frozen=True)
class Comparison:
    """One quantity on both sides.

    Args:
        name: str.
        values: tuple of the two values, as shown; empty for a quantity that is a difference itself.
        difference: float, of numbers.
        tolerance: float, that the difference may have; both `None` for what is equal or not.
        passed: bool. Whether the sides agree.
    """

    name: str
    values: tuple
    difference: float | None
    tolerance: float | None
    passed: bool


def compare_numbers(name, values, tolerance):
    """The comparison of two numbers, or of two arrays of one shape.

    Args:
        name: str.
        values: tuple of two floats or numpy arrays. Of arrays the largest difference is given.
        tolerance: float, relative to the largest value of the first.

    Returns:
        `Comparison`.
    """
    first, second = (np.asarray(value) for value in values)
    difference, allowed = float(np.abs(first - second).max()), float(tolerance * np.abs(first).max())
    # A NaN is beyond every tolerance.
    passed = bool(difference <= allowed)
    return Comparison(name, values if first.ndim == 0 else (), difference, allowed, passed)


def fixed_batches(config, longest=None):
    """The token ids that models are compared on, unpadded and padded.

    Args:
        config: `ALGPT2Config`.
        longest: int. The most tokens that a model takes; `None` means `n_positions`.

    Returns:
        dict of str, a name, to a tuple of the ids, int64 (4, length), and their mask, int64 (4, length), 0 for padding.
    """
    length = min(longest or config.n_positions, 64)
    # Padding is told by the mask, or by its id, which is then that of no token.
    padding_id = comparison_padding(config)
    ids = np.random.default_rng(0).integers(1, max(config.vocab_size, 2), size=(4, length)) + padding_id
    ids %= config.vocab_size
    padding = np.arange(length) < np.array([length, length // 2, length // 3 + 1, 1])[:, None]
    # Padding on the left comes before the tokens, and only the mask keeps them from attending to it.
    padding[1] = padding[1, ::-1]
    padded = np.where(padding, ids, padding_id)
    return {"unpadded": (ids, np.ones_like(ids)), "padded": (padded, padding.astype(ids.dtype))}


def comparison_padding(config):
    """int: the id of padding in `fixed_batches`: that of the configuration, if it is in the vocabulary."""
    token = config.pad_token_id
    return token if isinstance(token, int) and 0 <= token < config.vocab_size else 0


def compare_logits(sides, config, tolerance, longest=None):
    """Compare the logits of every head on fixed token ids, unpadded and padded.

    Args:
        sides: list of two functions from int ids and mask (batch, length) to a dict of numpy arrays: `logits`
            (batch, length, V), or of a classifier (batch, classes), and `sop_logits` (batch, 2) if there are any.
        config: `ALGPT2Config`.
        tolerance: float, relative to the largest logit.
        longest: int, as in `fixed_batches`.

    Returns:
        list of `Comparison`.
    """
    comparisons = []
    for name, (ids, mask) in fixed_batches(config, longest).items():
        outputs = [side(ids, mask) for side in sides]
        for output, label in (("logits", "logit"), ("sop_logits", "sentence-order logit")):
            if all(output in found for found in outputs):
                # What is computed at padding does not matter.
                counted = mask == 1 if outputs[0][output].ndim == 3 else slice(None)
                arrays = tuple(found[output][counted] for found in outputs)
                comparisons.append(compare_numbers(f"largest {label} difference, {name}", arrays, tolerance))
    return comparisons


def table(names, comparisons):
    """The comparisons as a Markdown table; the columns of the two sides are left out if there is nothing in them.

    Args:
        names: list of str. The two sides.
        comparisons: list of `Comparison`.
    """
    sided = any(comparison.values for comparison in comparisons)
    rows = [(" and ".join(names), *(names if sided else ()), "difference", "tolerance", "")]
    for comparison in comparisons:
        values = [f"{value:.6f}" if isinstance(value, float) else repr(value) for value in comparison.values]
        numbers = ["" if n is None else f"{n:.2e}" for n in (comparison.difference, comparison.tolerance)]
        shown = (values or ("", "")) if sided else ()
        rows.append((comparison.name, *shown, *numbers, "ok" if comparison.passed else "FAILED"))
    return markdown_table(rows)


def as_json(names, comparisons):
    """The comparisons as what `json.dumps` takes.

    Args:
        names, comparisons: as in `table`.
    """
    return {"sides": names, "comparisons": [dataclasses.asdict(comparison) for comparison in comparisons]}
