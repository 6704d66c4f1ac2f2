"""The program of evaluation, the same for both frameworks."""

import json
import sys

from algpt2.checkpoints.checkpoint import opened
from algpt2.cli import FRAMEWORKS
from algpt2.data.corpus import text_options
from algpt2.errors import InputError
from algpt2.evaluation.arguments import FIGURE_FILE
from algpt2.evaluation.perplexity import evaluate, validation_text
from algpt2.evaluation.report import check_figure, draw_depths, evaluation_table, record


def run_evaluation(arguments, losses_at_depths):
    """Evaluate a checkpoint, and print what was found.

    Args:
        arguments: `argparse.Namespace` of `algpt2.evaluation.arguments.evaluate_parser`.
        losses_at_depths: function from an `algpt2.checkpoints.checkpoint.Checkpoint`, a list of depths, `None` for its
            own, and the arguments, an `argparse.Namespace`, to an iterator over the functions that
            `algpt2.evaluation.perplexity.evaluate` takes, one for each depth.

    Raises:
        InputError: for anything wrong in the arguments, the checkpoint or the text.
    """
    if arguments.stride and arguments.protocol != "sliding":
        raise InputError("--stride is for --protocol sliding")
    depths = arguments.depth or [None]
    figure = arguments.figure or FIGURE_FILE
    if arguments.figure and len(depths) == 1:
        raise InputError("--figure draws perplexity over depth; give several depths, such as --depth 2,4,6")
    check_figure(figure)
    checkpoint = opened(arguments.checkpoint, arguments.framework)
    for depth in depths:
        checkpoint.at_depth(depth)
    own_depth = checkpoint.config.n_layer
    text, length = validation_text(
        checkpoint,
        arguments.dataset,
        arguments.length,
        by="line" if arguments.protocol == "line" else "document",
        options=text_options(arguments),
    )
    context = {"checkpoint": str(arguments.checkpoint), "framework": FRAMEWORKS[arguments.framework].title}
    context["dataset"] = arguments.dataset
    records = []
    for depth, losses in zip(depths, losses_at_depths(checkpoint, depths, arguments), strict=True):
        result = evaluate(
            losses, text, length, arguments.batch_size, arguments.protocol, arguments.stride, progress=True
        )
        records.append(record(result, **context, depth=depth or own_depth))
    if arguments.json:
        print(json.dumps(records if len(records) > 1 else records[0], allow_nan=False))
    elif len(records) > 1:
        print(f"{arguments.dataset}, protocol {result.name}\n\n{evaluation_table(records)}")
    else:
        print(
            f"{arguments.dataset}, protocol {result.name}: {result.tokens} tokens, loss {result.loss:.6f}, "
            f"perplexity {result.perplexity:.4f}, word perplexity {_shown(result.word_perplexity)}, "
            f"bits per byte {_shown(result.bits_per_byte)}"
        )
    if len(records) > 1:
        draw_depths(records, own_depth, figure)
        print(f"wrote {figure}", file=sys.stderr)


def _shown(value):
    return "unknown" if value is None else f"{value:.4f}"
