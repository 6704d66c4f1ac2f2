"""The command line of the benchmark of a checkpoint."""

from algpt2.benchmark.runtimes import RUNTIMES
from algpt2.cli import Parser, positive_int


def build_parser():
    """The command line.

    Returns:
        `algpt2.cli.Parser`.
    """
    parser = Parser(
        prog="python -m algpt2.benchmark",
        description="Measure a checkpoint on this machine's CPU in each runtime and precision: the speed of greedy "
        "decoding, the bytes of the weights, and the perplexity of a text; and recommend one.",
    )
    parser.add_argument("checkpoint", help="a checkpoint directory, an ONNX directory, or the id of a hub repository")
    parser.add_argument(
        "--runtimes", nargs="+", choices=RUNTIMES, metavar="NAME", help=f"only these of {', '.join(RUNTIMES)}"
    )
    parser.add_argument("--prompt-length", type=positive_int, default=8, metavar="N", help="start from N random tokens")
    parser.add_argument(
        "--new-tokens", type=positive_int, metavar="N", help="make N tokens (default: 128, or what n_positions leaves)"
    )
    parser.add_argument("--rounds", type=positive_int, default=3, metavar="N", help="take the median of N rounds")
    parser.add_argument("--dataset", help="measure the perplexity of this text, as evaluate takes it")
    parser.add_argument(
        "--dataset-tokens", type=positive_int, default=16_384, metavar="N", help="of its first N tokens"
    )
    return parser
