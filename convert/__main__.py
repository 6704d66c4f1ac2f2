"""The command line of conversion: `python -m convert --help`."""

import argparse
import sys

from algpt2.arguments import HelpFormatter, positive_int
from algpt2.errors import exit_on_error
from algpt2.weights import DTYPES


def build_parser():
    parser = argparse.ArgumentParser(
        prog="python -m convert", description="Move ALGPT2 checkpoints between PyTorch and TensorFlow."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, source, target in (
        ("pt2tf", "model.safetensors", "model.weights.h5"),
        ("tf2pt", "model.weights.h5", "model.safetensors"),
    ):
        command = commands.add_parser(
            name,
            help=f"{source} to {target}",
            description=f"Write {target} from {source}, then run both models and compare their logits.",
        )
        command.add_argument("directory", help=f"a checkpoint directory with {source}")
        command.add_argument("--output", metavar="DIR", help="write a new directory (default: add to the given one)")
        command.add_argument("--dtype", choices=list(DTYPES), help="of the weights (default: as stored)")
        command.add_argument("--force", action="store_true", help="replace what is there already")
        command.add_argument("--no-verify", action="store_true", help="do not run the models")
    command = commands.add_parser(
        "verify",
        help="compare both models of a directory on text",
        description="Compare loss, perplexity, logits and a greedy continuation of a checkpoint in both frameworks.",
        formatter_class=HelpFormatter,
    )
    command.add_argument("directory", help="a directory with the weights of both frameworks and a tokenizer")
    command.add_argument("--dataset", default="python-docs", help="python-docs (its held-out part) or text files")
    command.add_argument("--prompt", default="The value of", help="the text to continue")
    command.add_argument("--length", type=positive_int, metavar="N", help="tokens in a block (default: n_positions)")
    return parser


def main(argv=None):
    parser = build_parser()
    arguments = parser.parse_args(argv)
    with exit_on_error(parser.prog):
        # The frameworks take seconds to start; a wrong command line need not wait for them.
        from convert import conversion, verification

        if arguments.command == "verify":
            comparisons = verification.compare_on_text(
                arguments.directory, arguments.dataset, arguments.prompt, arguments.length
            )
        else:
            convert = getattr(conversion, arguments.command)
            target = convert(arguments.directory, arguments.output, arguments.dtype, arguments.force)
            print(f"wrote {target}", flush=True)
            comparisons = []
            if not arguments.no_verify:
                sides = (target, arguments.directory) if arguments.command == "pt2tf" else (arguments.directory, target)
                comparisons = verification.compare_logits(*verification.load_both(*sides, dtype=arguments.dtype))
        if comparisons:
            print(verification.table(comparisons))
        if not all(comparison.passed for comparison in comparisons):
            print(f"{parser.prog}: the frameworks differ beyond tolerance", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main()
