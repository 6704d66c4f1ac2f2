"""Train a tokenizer: `python -m algpt2.tokenization train --help`."""

from algpt2.cli import Parser, positive_int, run_command
from algpt2.data.arguments import add_dataset_arguments
from algpt2.data.corpus import PYTHON_DOCS


def build_parser():
    """The command line.

    Returns:
        `algpt2.cli.Parser`.
    """
    parser = Parser(prog="python -m algpt2.tokenization", description="Train a tokenizer.")
    train = parser.add_subparsers(dest="command", required=True, metavar="COMMAND").add_parser(
        "train", help="byte-level BPE as GPT-2's"
    )
    text = train.add_argument_group("text")
    add_dataset_arguments(text, f"{PYTHON_DOCS}, a file, a folder, a quoted glob, or a hub data set")
    text.add_argument(
        "--splits", metavar="NAMES", help="splits to train on, with commas between (default: train; all of files)"
    )
    tokenizer = train.add_argument_group("tokenizer")
    tokenizer.add_argument("--vocab-size", type=positive_int, default=50257, metavar="N", help="the most tokens")
    tokenizer.add_argument(
        "--special-tokens",
        nargs="+",
        metavar="TOKEN",
        help="the first ids, in this order (default: <|endoftext|>)",
    )
    tokenizer.add_argument("--add-prefix-space", action="store_true", help="start a text as if a space were before it")
    output = train.add_argument_group("output")
    output.add_argument("--output-dir", required=True, metavar="DIR", help="where tokenizer.json is written")
    output.add_argument("--overwrite", action="store_true", help="replace a tokenizer that is there already")
    return parser


def main(argv=None):
    run_command(build_parser(), "algpt2.data.train_tokenizer.run", argv)


if __name__ == "__main__":
    main()
