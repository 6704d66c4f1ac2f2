"""The command line of evaluation, the same for both frameworks."""

from algpt2.cli import add_device_argument, checkpoint_parser, positive_int
from algpt2.data.arguments import add_dataset_arguments
from algpt2.data.corpus import PYTHON_DOCS
from algpt2.evaluation import EVALUATION_BATCH, PROTOCOLS

FIGURE_FILE = "depth-perplexity.png"


def evaluate_parser(framework):
    """The command line of evaluation.

    Args:
        framework: str, one of `algpt2.imports.frameworks.FRAMEWORKS`: the one that computes.

    Returns:
        `algpt2.cli.Parser`; a framework may add its own arguments to its group `devices`, the last but one.
    """
    parser = checkpoint_parser(framework, "evaluate", "Measure the perplexity of a checkpoint")
    text = parser.add_argument_group("text")
    add_dataset_arguments(
        text,
        "evaluate on a file, a folder, a quoted glob, or what a hub data set or "
        f"{PYTHON_DOCS} holds out (default: the held-out text of the run, or else {PYTHON_DOCS})",
    )
    parser.set_defaults(dataset=None)
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="cut one token stream into blocks, take every line by itself, or slide a window over the stream "
        "(default: as the run was evaluated, or else stream)",
    )
    protocol.add_argument(
        "--length",
        type=positive_int,
        metavar="N",
        help="let a row have N tokens at most (default: as the run, or else n_positions)",
    )
    protocol.add_argument(
        "--stride",
        type=positive_int,
        metavar="N",
        help="slide the window by N tokens (default: half a row)",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--depth",
        type=depth_list,
        metavar="N[,N...]",
        help="apply N layers of the same blocks; several give a table and a figure (default: n_layer)",
    )
    parser.devices = parser.add_argument_group("devices")
    add_device_argument(parser.devices, "evaluate")
    parser.devices.add_argument(
        "--batch-size",
        type=positive_int,
        default=EVALUATION_BATCH,
        metavar="N",
        help="compute N rows at once, for the same result",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--figure", metavar="FILE", help=f"draw the perplexity of several depths here (default: {FIGURE_FILE})"
    )
    output.add_argument("--json", action="store_true", help="print JSON: an object, or a list of one for each depth")
    return parser


def depth_list(text):
    """The depths of `--depth`, such as `2,4,6`, each once."""
    return list(dict.fromkeys(positive_int(part) for part in text.split(",")))


depth_list.__name__ = "list of depths"
