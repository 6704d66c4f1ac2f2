"""The program of the benchmark of a checkpoint."""

import functools
import statistics
import sys
import time
from dataclasses import replace

import numpy as np

from algpt2.benchmark.runtimes import RUNTIMES, quantization
from algpt2.benchmark.timing import processor, time_in_turns
from algpt2.checkpoints.weights import parameter_count
from algpt2.errors import InputError
from algpt2.evaluation.perplexity import evaluate, validation_text
from algpt2.onnx.exported import ExportedCheckpoint, open_either
from algpt2.tables import markdown_table

NEW_TOKENS = 128
# What rounded weights may add to the perplexity of a model that is recommended.
TOLERANCE = 0.01


def run(arguments):
    """Measure a checkpoint in each runtime and precision, and print a table and a recommendation.

    Args:
        arguments: `argparse.Namespace` of `algpt2.benchmark.arguments.build_parser`.

    Raises:
        InputError: for anything wrong in the arguments, the checkpoint or the text, and if there is no runtime.
    """
    checkpoint = open_either(arguments.checkpoint)
    config = checkpoint.config
    variants = _variants(checkpoint, arguments.runtimes)
    room = config.n_positions - arguments.prompt_length
    count = arguments.new_tokens or min(NEW_TOKENS, room)
    if not 1 <= count <= room:
        raise InputError(
            f"--prompt-length {arguments.prompt_length} and --new-tokens {arguments.new_tokens or 1} are more than the "
            f"{config.n_positions} positions of the model; give fewer"
        )
    text = None
    if arguments.dataset:
        text, length = validation_text(checkpoint, arguments.dataset)
        text = replace(text, tokens=text.tokens[: arguments.dataset_tokens])
    prompt = np.random.default_rng(0).integers(config.vocab_size, size=arguments.prompt_length).tolist()
    models, loading, failures = {}, {}, {}
    for runtime, precision in variants:
        print(f"loading {_title((runtime, precision))}", file=sys.stderr)
        start = time.perf_counter()
        try:
            models[runtime, precision] = RUNTIMES[runtime].load(checkpoint, precision)
        except InputError as error:
            failures.setdefault(str(error), []).append(_title((runtime, precision)))
        loading[runtime, precision] = time.perf_counter() - start
    if not models:
        raise InputError(next(iter(failures)))
    seconds, first = time_in_turns(
        {_title(variant): functools.partial(model.generate, prompt, count) for variant, model in models.items()},
        arguments.rounds,
    )
    rows = []
    for variant, model in models.items():
        taken = seconds[_title(variant)]
        row = {"runtime": RUNTIMES[variant[0]].title, "weights": variant[1]}
        row["tokens/s"] = count / statistics.median(taken)
        row["spread"] = f"{count / max(taken):,.1f} to {count / min(taken):,.1f}"
        row["first text, s"] = f"{loading[variant] + first[_title(variant)]:.1f}"
        row["MB"] = f"{model.size / 1e6:,.1f}"
        if text:
            row["perplexity"] = evaluate(model.token_losses, text, length, batch_size=4, progress=True).perplexity
        rows.append(row)
    # The configuration of a graph is that of a GPT-2, but the graph stores a shared block once.
    size = "" if isinstance(checkpoint, ExportedCheckpoint) else f"{parameter_count(config):,} parameters, "
    print(
        f"{arguments.checkpoint}: {size}{arguments.prompt_length} + {count} tokens, "
        f"batch 1, medians of {arguments.rounds} on {processor()}\n"
    )
    print(markdown_table([list(rows[0]), *(map(_shown, row.values()) for row in rows)]))
    for error, variants in failures.items():
        print(f"\nnot in {'; '.join(variants)}: {error}")
    print(f"\n{_recommendation(arguments.checkpoint, list(models), rows)}")


def _variants(checkpoint, names):
    """list of tuple of str: the runtimes and precisions that there are for a checkpoint."""
    if isinstance(checkpoint, ExportedCheckpoint):
        if set(names or ["onnx"]) != {"onnx"}:
            raise InputError(f"{checkpoint.directory}: holds a graph for ONNX Runtime; leave --runtimes out")
        names = ["onnx"]
    for name in names or ():
        if not RUNTIMES[name].is_installed:
            raise InputError(f"--runtimes {name}: {RUNTIMES[name].package} is not installed; install or leave it out")
    found = list(dict.fromkeys(names or [name for name in RUNTIMES if RUNTIMES[name].is_installed]))
    if not found:
        raise InputError("no runtime is installed; the README tells what to install")
    variants = [(name, precision) for name in found for precision in RUNTIMES[name].uses]
    if isinstance(checkpoint, ExportedCheckpoint):
        return [variant for variant in variants if checkpoint.holds(quantization(variant[1]))]
    return variants


def _title(variant):
    runtime, precision = variant
    return f"{RUNTIMES[runtime].title}, {precision}"


def _shown(value):
    return f"{value:,.2f}" if isinstance(value, float) else value


def _recommendation(checkpoint, variants, rows):
    """str: the fastest variant, of those that keep the perplexity if that is known, and the command for it."""
    allowed = range(len(rows))
    reason = "fastest (give a --dataset to see what rounded weights cost)"
    if "perplexity" in rows[0]:
        limit = (1 + TOLERANCE) * min(row["perplexity"] for row in rows)
        allowed = [index for index in allowed if rows[index]["perplexity"] <= limit]
        reason = f"fastest within {TOLERANCE:.0%} of the best perplexity"
    best = max(allowed, key=lambda index: rows[index]["tokens/s"])
    runtime, precision = variants[best]
    use = RUNTIMES[runtime].use(precision, checkpoint)
    return f"{reason}: {_title(variants[best])}\n\n    {use}"
