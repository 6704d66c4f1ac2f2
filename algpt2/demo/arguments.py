"""The command line of the demo."""

from algpt2.cli import Parser, port
from algpt2.imports.frameworks import FRAMEWORKS


def build_parser():
    """The command line.

    Returns:
        `algpt2.cli.Parser`.
    """
    parser = Parser(
        prog="python -m algpt2.demo",
        description="Try checkpoints in a browser: continuations, the loss of every token, perplexity by position and "
        "by depth.",
    )
    parser.add_argument("checkpoints", nargs="+", metavar="DIR", help="checkpoints of any system")
    parser.add_argument("--framework", choices=FRAMEWORKS, help="that computes (default: that of the weights)")
    parser.add_argument("--host", default="127.0.0.1", help="the address to serve at; 0.0.0.0 lets others in")
    parser.add_argument("--port", type=port, default=7860, metavar="N", help="0 takes one that is free")
    return parser
