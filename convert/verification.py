"""Compare what two checkpoints compute, or what both frameworks compute with one."""

from tqdm.auto import tqdm

from algpt2.checkpoints.checkpoint import open_checkpoint, opened
from algpt2.data.encoding import encode
from algpt2.errors import InputError
from algpt2.evaluation import EVALUATION_BATCH
from algpt2.evaluation.perplexity import evaluate, perplexity, validation_text
from algpt2.generation.continuation import continue_tokens, prepare_prompts
from convert.comparison import TOLERANCES, Comparison, compare_logits, compare_numbers, fixed_batches
from convert.sides import both_frameworks, open_side

# For a GPT-2 whose matrices were multiplied out, by the dtype of the computation; and if the products were then
# rounded, by the dtype that they were rounded to.
GPT2_TOLERANCES = {"float32": 1e-5, "float64": 1e-10}
ROUNDED_TOLERANCES = {"float16": 1e-2, "bfloat16": 5e-2}
NEW_TOKENS = 24


def compare_conversion(source, target, to, dtype=None):
    """Compare the logits of a converted checkpoint with those of its source.

    Args:
        source: `algpt2.checkpoints.checkpoint.Checkpoint`.
        target: path.
        to: str. The function that converted it: `"pt2tf"`, `"tf2pt"`, `"to_tf"`, `"to_pt"` or `"to_gpt2"`.
        dtype: str. What the weights were rounded to; `None` if they were not.

    Returns:
        tuple of the names of the sides and the list of `Comparison`.
    """
    target_framework = {"pt2tf": "tensorflow", "to_tf": "tensorflow"}.get(to, "pytorch")
    target = open_checkpoint(target, target_framework)
    compute = _compute_dtype(source, target)
    tolerance, rounded_to = TOLERANCES[compute], None
    if to == "to_gpt2":
        # Products are rounded after they are computed, so that rounding the source would not give the same.
        tolerance = ROUNDED_TOLERANCES.get(dtype, GPT2_TOLERANCES[compute])
    elif dtype != source.dtype:
        rounded_to = dtype
    sides = [open_side(source, compute, rounded_to=rounded_to), open_side(target, compute)]
    return [side.name for side in sides], compare_logits([side.outputs for side in sides], source.config, tolerance)


def compare_directory(directory):
    """Compare the logits of both frameworks for one directory.

    Args:
        directory: path with the weights of both frameworks, or of one, which then both run; or that, opened.

    Returns:
        list of `Comparison`.

    Example:
        >>> all(c.passed for c in compare_directory("runs/demo"))  # doctest: +SKIP
        True
    """
    first, second = both_frameworks(opened(directory))
    dtype = _compute_dtype(first["checkpoint"], second["checkpoint"])
    sides = [open_side(dtype=dtype, **side) for side in (first, second)]
    return compare_logits([side.outputs for side in sides], first["checkpoint"].config, TOLERANCES[dtype])


def _compute_dtype(first, second):
    return "float64" if first.dtype == second.dtype == "float64" else "float32"


def verify(directory, other=None, dataset=None, prompt=None, length=None):
    """Compare loss, logits, hidden states and a greedy continuation of two checkpoints, as far as they have them.

    Args:
        directory: path, or a checkpoint that is open.
        other: the same; `None` compares what both frameworks compute with `directory`.
        dataset: str, as `--dataset` of evaluation, to measure the loss on; `None` takes fixed token ids.
        prompt: str, to continue; `None` takes fixed token ids. Both need a tokenizer in `directory`.
        length: int. The tokens of a row of the text; `None` means `n_positions`.

    Returns:
        tuple of the names of the sides and the list of `Comparison`.

    Raises:
        algpt2.errors.InputError: if anything cannot be read, or the models are not of one shape.
    """
    checkpoint = opened(directory)
    if other is None:
        openings = both_frameworks(checkpoint)
    else:
        openings = [{"checkpoint": checkpoint}, {"checkpoint": opened(other)}]
    configs = [opening["checkpoint"].config for opening in openings]
    for field in ("vocab_size", "n_positions", "n_layer", "n_embd"):
        values = [getattr(config, field) for config in configs]
        if values[0] != values[1]:
            raise InputError(f"{directory} and {other}: {field} is {values[0]} and {values[1]}; nothing to compare")
    first, second = (opening["checkpoint"] for opening in openings)
    if first.is_language_model != second.is_language_model:
        raise InputError(f"{directory} and {other}: are of {first.architecture} and {second.architecture}")
    if not first.is_language_model and (dataset or prompt is not None):
        raise InputError(f"{directory}: is of {first.architecture}; --dataset and --prompt are for language models")
    if configs[0].n_positions < 2:
        raise InputError(f"{directory}: n_positions is {configs[0].n_positions}; a loss needs at least 2")
    context, stop_token_id, tokenizer = _context(checkpoint, prompt)
    text = validation_text(checkpoint, dataset, length) if dataset else None
    dtype = _compute_dtype(*(opening["checkpoint"] for opening in openings))
    sides = [open_side(dtype=dtype, **opening) for opening in openings]
    tolerance = TOLERANCES[dtype]

    steps = [
        lambda: _compare_losses(sides, configs[0], text, tolerance),
        lambda: compare_logits([side.outputs for side in sides], configs[0], tolerance),
        lambda: _compare_hidden_states(sides, configs[0], tolerance),
        lambda: [_compare_continuations(sides, configs[0], context, stop_token_id, tokenizer)],
    ]
    if not first.is_language_model:
        steps = steps[1:3]
    comparisons = []
    for step in tqdm(steps, desc="comparing", leave=False, delay=2, disable=None):
        comparisons += step()
    return [side.name for side in sides], comparisons


def _context(checkpoint, prompt):
    """The ids to continue, the id that ends a text, and the tokenizer, which fixed ids do without."""
    if prompt is None:
        # The id that ends a text is one that no model can give, so that no continuation ends early.
        return _fixed_ids(checkpoint.config)[0, :16].tolist(), checkpoint.config.vocab_size, None
    tokenizer = prepare_prompts(checkpoint, [prompt])
    return encode(tokenizer, prompt), tokenizer.eos_token_id, tokenizer


def _fixed_ids(config):
    return fixed_batches(config)["unpadded"][0]


def _compare_losses(sides, config, text, tolerance):
    if text is None:
        ids = _fixed_ids(config)
        losses = [float(side.token_losses(ids).mean()) for side in sides]
        name = f"fixed ids, length {ids.shape[1]}"
    else:
        results = [evaluate(side.token_losses, *text, EVALUATION_BATCH, progress=True) for side in sides]
        losses, name = [result.loss for result in results], f"protocol {results[0].name}"
    return [
        compare_numbers(f"loss ({name})", tuple(losses), tolerance),
        # exp turns an absolute error of the loss into a relative one.
        compare_numbers("perplexity", tuple(map(perplexity, losses)), tolerance * max(1.0, losses[0])),
    ]


def _compare_hidden_states(sides, config, tolerance):
    states = [side.hidden_states(_fixed_ids(config)) for side in sides]
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
