"""The program of the demo."""

import importlib.util

from algpt2.demo.models import open_models
from algpt2.demo.page import launch, page
from algpt2.errors import InputError


def run(arguments):
    """Serve the page until it is interrupted.

    Args:
        arguments: `argparse.Namespace` of `algpt2.demo.arguments.build_parser`.

    Raises:
        InputError: if Gradio is missing, a checkpoint cannot be read or the port is taken.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError("needs gradio; run pip install 'algpt2[demo]'")
    models = open_models(arguments.checkpoints, arguments.framework)
    launch(page(models), arguments.host, arguments.port)
