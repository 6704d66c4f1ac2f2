"""The command line of generation, the same for both frameworks."""

import argparse

from algpt2.cli import add_device_argument, checkpoint_parser, positive_float, positive_int, probability, seed


def generate_parser(framework):
    """The command line of generation.

    Args:
        framework: str, one of `algpt2.imports.frameworks.FRAMEWORKS`: the one that computes.

    Returns:
        `algpt2.cli.Parser`; a framework may add its own arguments to its group `devices`, the last one.
    """
    parser = checkpoint_parser(framework, "generate", "Continue a text with a checkpoint")
    _add_text_arguments(parser.add_argument_group("text"))
    _add_sampling_arguments(parser.add_argument_group("choice of tokens"))
    parser.devices = parser.add_argument_group("devices")
    add_device_argument(parser.devices, "generate")
    return parser


def _add_text_arguments(group):
    group.add_argument("prompt", nargs="?", help="continue this text; - or none: that of standard input")
    group.add_argument("--prompt-file", metavar="FILE", help="continue each line of a text file")
    group.add_argument(
        "--interactive",
        action="store_true",
        help="go on from what is typed, line by line, with all of the text so far as the context",
    )
    group.add_argument(
        "--max-new-tokens", type=positive_int, default=64, metavar="N", help="continue by N tokens at most"
    )
    group.add_argument(
        "--stop",
        action="append",
        metavar="TEXT",
        help="end a continuation before this text; may be given several times",
    )
    group.add_argument(
        "--draft-depth",
        type=positive_int,
        metavar="N",
        help="draft tokens at this smaller depth and verify them at full depth: the same greedy text, in less time "
        "where drafts are mostly right (train --random-depth)",
    )
    group.add_argument("--speed", action="store_true", help="say how many tokens a second were made")
    group.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="print text as it is produced (default: on a terminal)",
    )


def _add_sampling_arguments(group):
    group.add_argument(
        "--temperature", type=positive_float, metavar="X", help="sample at this temperature (default: greedy search)"
    )
    group.add_argument("--top-k", type=positive_int, metavar="N", help="sample among the N likeliest tokens")
    group.add_argument(
        "--top-p", type=probability, metavar="X", help="sample among the likeliest tokens of this total probability"
    )
    group.add_argument(
        "--min-p",
        type=probability,
        metavar="X",
        help="sample among tokens this likely, as a share of the likeliest",
    )
    group.add_argument(
        "--num-beams", type=positive_int, default=1, metavar="N", help="search the likeliest text with N beams"
    )
    group.add_argument(
        "--repetition-penalty",
        type=positive_float,
        default=1.0,
        metavar="X",
        help="make tokens of the text so far less likely, above 1",
    )
    group.add_argument("--num-samples", type=positive_int, default=1, metavar="N", help="write N texts for each prompt")
    group.add_argument("--seed", type=seed, default=0, metavar="N", help="draw tokens from this seed")
