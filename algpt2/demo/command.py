"""The command line of the demo."""

import importlib.util

from algpt2.cli import FRAMEWORKS, Parser, port
from algpt2.errors import InputError, exit_on_error


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


def main(argv=None):
    parser = build_parser()
    arguments = parser.parse_args(argv)
    with exit_on_error(parser.prog):
        if importlib.util.find_spec("gradio") is None:
            raise InputError("needs gradio; run pip install 'algpt2[demo]'")
        run(arguments)


def run(arguments):
    """Serve the page until it is interrupted.

    Args:
        arguments: `argparse.Namespace` of `build_parser`.

    Raises:
        InputError: if a checkpoint cannot be read or the port is taken.
    """
    from algpt2.demo.models import open_models
    from algpt2.demo.page import launch, page

    models = open_models(arguments.checkpoints, arguments.framework)
    launch(page(models), arguments.host, arguments.port)
