"""Train a tokenizer: `python -m algpt2.tokenization train --help`."""

import argparse

from algpt2.cli import HelpFormatter, positive_int, run_command
from algpt2.data.corpus import PYTHON_DOCS, add_dataset_arguments


def build_parser():
    """The command line.

    Returns:
        `argparse.ArgumentParser`.
    """
    parser = argparse.ArgumentParser(prog="python -m algpt2.tokenization", description="Train a tokenizer.")
    train = parser.add_subparsers(dest="command", required=True).add_parser(
        "train", help="byte-level BPE as GPT-2's", formatter_class=HelpFormatter
    )
    add_dataset_arguments(train, f"{PYTHON_DOCS}, a file, a folder, a quoted glob, or a hub data set")
    train.add_argument(
        "--splits", metavar="NAMES", help="splits to train on, with commas between (default: train; all of files)"
    )
    train.add_argument("--vocab-size", type=positive_int, default=50257, metavar="N", help="the most tokens")
    train.add_argument(
        "--special-tokens",
        nargs="+",
        metavar="TOKEN",
        help="the first ids, in this order (default: <|endoftext|>)",
    )
    train.add_argument("--add-prefix-space", action="store_true", help="start a text as if a space were before it")
    train.add_argument("--output-dir", required=True, metavar="DIR", help="where tokenizer.json is written")
    train.add_argument("--overwrite", action="store_true", help="replace a tokenizer that is there already")
    return parser


def main(argv=None):
    run_command(build_parser(), "algpt2.data.train_tokenizer.run", argv)


if __name__ == "__main__":
    main()
