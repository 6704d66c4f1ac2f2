"""Compare what two checkpoints compute, or what both frameworks compute with one."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from algpt2.checkpoint import find_checkpoint, open_checkpoint
from algpt2.commands import prepare_prompts, validation_text
from algpt2.errors import InputError
from algpt2.evaluation import evaluate, perplexity
from algpt2.generation import continue_tokens
from algpt2.reporting import markdown_table
from convert.sides import both_frameworks, open_side

# The largest difference, relative to the largest value, by the dtype of the computation.
TOLERANCES = {"float32": 1e-5, "float64": 1e-12}
# Of a GPT-2 whose matrices were multiplied out; and where they were rounded after that, by the dtype.
GPT2_TOLERANCES = {"float32": 1e-5, "float64": 1e-10}
ROUNDED_TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2}
NEW_TOKENS = 24


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


def compare_logits(sides, config, tolerance):
    """Compare the logits of every head on fixed token ids, unpadded and padded.

    Args:
        sides: list of two `convert.sides.PyTorchSide` or `TensorFlowSide`.
        config: `ALGPT2Config`.
        tolerance: float, relative to the largest logit.

    Returns:
        list of `Comparison`.
    """
    ids = fixed_ids(config)
    length = ids.shape[1]
    padding = np.arange(length) < np.array([length, length // 2, length // 3 + 1, 1])[:, None]
    comparisons = []
    for name, mask in (("unpadded", np.ones_like(ids)), ("padded", padding.astype(ids.dtype))):
        outputs = [side.outputs(ids, mask) for side in sides]
        for output, label in (("logits", "logit"), ("sop_logits", "sentence-order logit")):
            if all(output in found for found in outputs):
                # What is computed at padding does not matter.
                counted = mask == 1 if output == "logits" else slice(None)
                arrays = tuple(found[output][counted] for found in outputs)
                comparisons.append(compare_numbers(f"largest {label} difference, {name}", arrays, tolerance))
    return comparisons


def fixed_ids(config):
    """int64 (4, length): the token ids that models are compared on."""
    length = min(config.n_positions, 64)
    return np.random.default_rng(0).integers(config.vocab_size, size=(4, length))


def compare_conversion(source, conversion, to="to_tf"):
    """Compare the logits of a converted checkpoint with those of its source.

    Args:
        source: path.
        conversion: `convert.conversion.Conversion`.
        to: str. The function that made it: `"pt2tf"`, `"tf2pt"`, `"to_tf"`, `"to_pt"` or `"to_gpt2"`.

    Returns:
        tuple of the names of the sides and the list of `Comparison`.
    """
    target_framework = {"pt2tf": "tensorflow", "to_tf": "tensorflow"}.get(to, "pytorch")
    source = open_checkpoint(source, "tensorflow" if to == "tf2pt" else "pytorch")
    target = open_checkpoint(conversion.directory, target_framework)
    compute = _compute_dtype(source, target)
    tolerance, rounded_to = TOLERANCES[compute], None
    if to == "to_gpt2":
        # Products are rounded after they are computed, so that rounding the source would not give the same.
        tolerance = ROUNDED_TOLERANCES.get(conversion.dtype, GPT2_TOLERANCES[compute])
    elif conversion.dtype != source.dtype:
        rounded_to = conversion.dtype
    sides = [open_side(source, compute, rounded_to=rounded_to), open_side(target, compute)]
    return [side.name for side in sides], compare_logits(sides, source.config, tolerance)


def compare_directory(directory):
    """Compare the logits of both frameworks for one directory.

    Args:
        directory: path with the weights of both frameworks, or of one, which then both run.

    Returns:
        list of `Comparison`.

    Example:
        >>> all(c.passed for c in compare_directory("runs/demo"))  # doctest: +SKIP
        True
    """
    first, second = both_frameworks(find_checkpoint(directory))
    dtype = _compute_dtype(first["checkpoint"], second["checkpoint"])
    return compare_logits(
        [open_side(dtype=dtype, **side) for side in (first, second)], first["checkpoint"].config, TOLERANCES[dtype]
    )


def _compute_dtype(first, second):
    return "float64" if first.dtype == second.dtype == "float64" else "float32"


def verify(directory, other=None, dataset=None, prompt=None, length=None, batch_size=16):
    """Compare loss, logits, hidden states and a greedy continuation of two checkpoints.

    Args:
        directory: path.
        other: path; `None` compares what both frameworks compute with `directory`.
        dataset: str, as `--dataset` of evaluation, to measure the loss on; `None` takes fixed token ids.
        prompt: str, to continue; `None` takes fixed token ids. Both need a tokenizer in `directory`.
        length: int. The tokens of a row of the text; `None` means `n_positions`.
        batch_size: int.

    Returns:
        tuple of the names of the sides and the list of `Comparison`.

    Raises:
        algpt2.errors.InputError: if anything cannot be read, or the models are not of one shape.
    """
    directory = find_checkpoint(directory)
    if other is None:
        openings = both_frameworks(directory)
    else:
        openings = [{"checkpoint": open_checkpoint(path)} for path in (directory, find_checkpoint(other))]
    configs = [opening["checkpoint"].config for opening in openings]
    for field in ("vocab_size", "n_positions", "n_layer", "n_embd"):
        values = [getattr(config, field) for config in configs]
        if values[0] != values[1]:
            raise InputError(f"{directory} and {other}: {field} is {values[0]} and {values[1]}; nothing to compare")
    if configs[0].n_positions < 2:
        raise InputError(f"{directory}: n_positions is {configs[0].n_positions}; a loss needs at least 2")
    context, stop_token_id, tokenizer = _context(directory, configs[0], prompt)
    text = validation_text(directory, dataset, length) if dataset else None
    dtype = _compute_dtype(*(opening["checkpoint"] for opening in openings))
    sides = [open_side(dtype=dtype, **opening) for opening in openings]
    tolerance = TOLERANCES[dtype]

    steps = (
        lambda: _compare_losses(sides, configs[0], text, batch_size, tolerance),
        lambda: compare_logits(sides, configs[0], tolerance),
        lambda: _compare_hidden_states(sides, configs[0], tolerance),
        lambda: [_compare_continuations(sides, configs[0], context, stop_token_id, tokenizer)],
    )
    comparisons = []
    for step in tqdm(steps, desc="comparing", leave=False, delay=2, disable=None):
        comparisons += step()
    return [side.name for side in sides], comparisons


def _context(directory, config, prompt):
    """The ids to continue, the id that ends a text, and the tokenizer, which fixed ids do without."""
    if prompt is None:
        # An id that no model can give ends nothing.
        return fixed_ids(config)[0, :16].tolist(), config.vocab_size, None
    _, _, tokenizer = prepare_prompts(directory, [prompt])
    return tokenizer.encode(prompt), tokenizer.eos_token_id, tokenizer


def _compare_losses(sides, config, text, batch_size, tolerance):
    if text is None:
        ids = fixed_ids(config)
        losses = [float(side.token_losses(ids).mean()) for side in sides]
        name = f"fixed ids, length {ids.shape[1]}"
    else:
        results = [evaluate(side.token_losses, *text, batch_size, progress=True) for side in sides]
        losses, name = [result.loss for result in results], f"protocol {results[0].name}"
    return [
        compare_numbers(f"loss ({name})", tuple(losses), tolerance),
        # exp turns an absolute error of the loss into a relative one.
        compare_numbers("perplexity", tuple(map(perplexity, losses)), tolerance * max(1.0, losses[0])),
    ]


def _compare_hidden_states(sides, config, tolerance):
    states = [side.hidden_states(fixed_ids(config)) for side in sides]
    return [
        compare_numbers(f"hidden state that enters depth {depth}", pair, tolerance)
        for depth, pair in enumerate(zip(*states, strict=True))
    ]


def _compare_continuations(sides, config, context, stop_token_id, tokenizer):
    found = []
    for side in sides:
        generate = side.generator(stop_token_id)
        new = continue_tokens(generate, context, NEW_TOKENS, config.n_positions, stop_token_id, lambda token: None)
        found.append(tokenizer.decode(new) if tokenizer else new)
    return Comparison(f"greedy continuation, {NEW_TOKENS} tokens", tuple(found), None, None, found[0] == found[1])


def table(names, comparisons):
    """The comparisons as a Markdown table.

    Args:
        names: list of str. The two sides.
        comparisons: list of `Comparison`.
    """
    rows = [("", *names, "difference", "tolerance", "")]
    for comparison in comparisons:
        values = [f"{value:.6f}" if isinstance(value, float) else repr(value) for value in comparison.values]
        numbers = ["" if n is None else f"{n:.2e}" for n in (comparison.difference, comparison.tolerance)]
        rows.append((comparison.name, *(values or ("", "")), *numbers, "ok" if comparison.passed else "FAILED"))
    return markdown_table(rows)


def as_json(names, comparisons):
    """The comparisons as what `json.dumps` takes.

    Args:
        names, comparisons: as in `table`.
    """
    return {"sides": names, "comparisons": [dataclasses.asdict(comparison) for comparison in comparisons]}
