"""The command line of evaluation, the same for both frameworks."""

import json
import sys

from algpt2.checkpoints.checkpoint import opened
from algpt2.cli import FRAMEWORKS, checkpoint_parser, positive_int
from algpt2.data.corpus import PYTHON_DOCS, add_dataset_arguments, text_options
from algpt2.errors import InputError, exit_on_error
from algpt2.evaluation.perplexity import PROTOCOLS, evaluate, validation_text
from algpt2.evaluation.report import check_figure, draw_depths, evaluation_table, record

FIGURE_FILE = "depth-perplexity.png"


def evaluate_parser(framework):
    """The command line of evaluation.

    Args:
        framework: str, one of `algpt2.cli.FRAMEWORKS`: the one that computes.

    Returns:
        `argparse.ArgumentParser`; a framework may add its own arguments.
    """
    parser = checkpoint_parser(framework, "evaluate", "Perplexity of a checkpoint")
    text = parser.add_argument_group("text")
    add_dataset_arguments(text, f"a file, folder, quoted glob or hub data set, or {PYTHON_DOCS} for its held-out part")
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="stream",
        help="one token stream cut into blocks; every line by itself; or a window that slides over the stream",
    )
    protocol.add_argument("--length", type=positive_int, metavar="N", help="tokens in a row (default: n_positions)")
    protocol.add_argument(
        "--stride",
        type=positive_int,
        metavar="N",
        help="tokens between windows, of sliding (default: half a row)",
    )
    protocol.add_argument("--batch-size", type=positive_int, default=16, metavar="N", help="rows at once")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--depth",
        type=depth_list,
        metavar="N[,N...]",
        help="apply the same blocks this often; several give a table and a figure (default: n_layer)",
    )
    output = parser.add_argument_group("output")
    output.add_argument("--figure", metavar="FILE", help=f"of several depths (default: {FIGURE_FILE})")
    output.add_argument("--json", action="store_true", help="print JSON: an object, or a list of one for each depth")
    return parser


def depth_list(text):
    """The depths of `--depth`, such as `2,4,6`, each once."""
    return list(dict.fromkeys(positive_int(part) for part in text.split(",")))


depth_list.__name__ = "list of depths"


def run_evaluation(parser, losses_at_depths, argv=None):
    """The program of evaluation.

    Args:
        parser: `argparse.ArgumentParser` of `evaluate_parser`.
        losses_at_depths: function from an `algpt2.checkpoints.checkpoint.Checkpoint`, a list of depths, `None` for its
            own, and the arguments, an `argparse.Namespace`, to an iterator over the functions that
            `algpt2.evaluation.perplexity.evaluate` takes, one for each depth.
        argv: list of str; by default that of the process.
    """
    arguments = parser.parse_args(argv)
    with exit_on_error(parser.prog):
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
