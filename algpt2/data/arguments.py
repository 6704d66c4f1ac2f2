"""The arguments of every command that reads a text."""

import itertools

from algpt2.data.corpus import DETOKENIZERS, PYTHON_DOCS, TextOptions, is_python_docs, local_files
from algpt2.data.files import has_rows
from algpt2.errors import InputError


def add_dataset_arguments(parser, dataset_help):
    """Add the arguments that name a text and say how to read it.

    Args:
        parser: `argparse.ArgumentParser` or one of its groups.
        dataset_help: str. What `--dataset` means to this command.
    """
    parser.add_argument("--dataset", default=PYTHON_DOCS, metavar="NAME", help=dataset_help)
    parser.add_argument(
        "--text-column",
        metavar="NAME",
        help="read the text from this column of JSON, .parquet and hub data (default: text)",
    )
    parser.add_argument("--streaming", action="store_true", help="read a hub data set as it is used")
    parser.add_argument("--detokenize", choices=DETOKENIZERS, help="undo the tokenization of WikiText")
    parser.add_argument("--control-code", metavar="TEXT", help="start every document with a text, such as '<|wiki|> '")


def text_options(arguments):
    """How the text is to be read.

    Args:
        arguments: `argparse.Namespace` of a parser with `add_dataset_arguments`.

    Returns:
        `algpt2.data.corpus.TextOptions`.
    """
    return TextOptions(arguments.text_column, arguments.streaming, arguments.detokenize, arguments.control_code)


def require_options_used(arguments):
    """Raise an InputError for an option that none of the texts has a use for.

    Args:
        arguments: `argparse.Namespace` of a parser with `add_dataset_arguments`, and maybe a `validation` text.
    """
    if not (arguments.streaming or arguments.text_column):
        return
    texts = [arguments.dataset, getattr(arguments, "validation", None)]
    files = {text: local_files(text) for text in texts if text is not None and not is_python_docs(text)}
    has_hub_data = any(not found for found in files.values())
    names = " and ".join(text for text in texts if text is not None)
    if arguments.streaming and not has_hub_data:
        raise InputError(f"--streaming would have no effect: it is for data sets of the hub, not {names}; leave it out")
    if arguments.text_column and not has_hub_data and not any(map(has_rows, itertools.chain(*files.values()))):
        raise InputError(f"--text-column would have no effect: {names} has no columns; leave it out")
