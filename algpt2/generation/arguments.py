"""The command line of generation, the same for both frameworks."""

import argparse

from algpt2.cli import checkpoint_parser, positive_float, positive_int, probability, seed


def generate_parser(framework):
    """The command line of generation.

    Args:
        framework: str, one of `algpt2.cli.FRAMEWORKS`: the one that computes.

    Returns:
        `argparse.ArgumentParser`; a framework may add its own arguments.
    """
    parser = checkpoint_parser(framework, "generate", "Continue a text with a checkpoint")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("prompt", nargs="?", help="the text to continue")
    text.add_argument("--prompt-file", metavar="FILE", help="a text file with a prompt in each line")
    parser.add_argument("--max-new-tokens", type=positive_int, default=64, metavar="N", help="the longest continuation")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--temperature", type=positive_float, metavar="X", help="sample at this temperature (default: greedy search)"
    )
    sampling.add_argument("--top-k", type=positive_int, metavar="N", help="sample among the N likeliest tokens")
    sampling.add_argument(
        "--top-p", type=probability, metavar="X", help="sample among the likeliest tokens of this total probability"
    )
    sampling.add_argument(
        "--repetition-penalty", type=positive_float, default=1.0, metavar="X", help="above 1 against repetition"
    )
    sampling.add_argument("--num-samples", type=positive_int, default=1, metavar="N", help="texts for each prompt")
    sampling.add_argument("--seed", type=seed, default=0, metavar="N", help="of sampling")
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="print text as it is produced (default: on a terminal)",
    )
    return parser
