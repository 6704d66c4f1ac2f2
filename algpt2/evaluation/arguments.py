"""The command line of evaluation, the same for both frameworks."""

from algpt2.cli import checkpoint_parser, positive_int
from algpt2.data.corpus import PYTHON_DOCS, add_dataset_arguments
from algpt2.evaluation import PROTOCOLS

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
