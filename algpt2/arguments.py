"""What the command lines share: their help, their number types, and the arguments that name a text."""

import argparse
import re
import sys

from algpt2.corpus import DETOKENIZERS, PYTHON_DOCS, TextOptions


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every argument that has one."""

    def _get_help_string(self, action):
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


def add_dataset_arguments(parser, dataset_help):
    """Add the arguments that name a text and say how to read it.

    Args:
        parser: `argparse.ArgumentParser` or one of its groups.
        dataset_help: str. What `--dataset` means to this command.
    """
    parser.add_argument("--dataset", default=PYTHON_DOCS, metavar="NAME", help=dataset_help)
    parser.add_argument(
        "--text-column", metavar="NAME", help="the column of the text, in .jsonl, .parquet and hub data (default: text)"
    )
    parser.add_argument("--streaming", action="store_true", help="read a hub data set as it is used")
    parser.add_argument("--detokenize", choices=DETOKENIZERS, help="undo the tokenization of WikiText")
    parser.add_argument("--control-code", metavar="TEXT", help="what every document starts with, such as '<|wiki|> '")


def text_options(arguments):
    """How the text is to be read.

    Args:
        arguments: `argparse.Namespace` of a parser with `add_dataset_arguments`.

    Returns:
        `algpt2.corpus.TextOptions`.
    """
    return TextOptions(arguments.text_column, arguments.streaming, arguments.detokenize, arguments.control_code)


def _number(convert, low, name, high=sys.float_info.max):
    def parse(text):
        value = convert(text)
        if not low <= value <= high:
            raise ValueError
        return value

    # argparse shows the name where the value is wrong.
    parse.__name__, parse.__doc__ = name, f"A {name} from a command line."
    return parse


def byte_size(text):
    """A size from a command line, such as `5GB`, as `huggingface_hub` and transformers take it."""
    if not re.fullmatch(r"[1-9]\d*[KMGT]B", text.upper()):
        raise ValueError
    return text.upper()


byte_size.__name__ = "size such as 500MB or 5GB"
positive_int = _number(int, 1, "positive integer")
natural_int = _number(int, 0, "non-negative integer")
positive_float = _number(float, sys.float_info.min, "positive number")
natural_float = _number(float, 0, "non-negative number")
probability = _number(float, sys.float_info.min, "probability above 0", high=1)
seed = _number(int, 0, "seed below 2**32", high=2**32 - 1)
