"""The command line of generation, the same for both frameworks."""

import argparse
import dataclasses
import functools
import itertools
import sys

from algpt2.checkpoints.checkpoint import opened
from algpt2.cli import (
    checkpoint_parser,
    positive_float,
    positive_int,
    probability,
    seed,
)
from algpt2.errors import InputError, exit_on_error
from algpt2.generation.continuation import Sampling, continue_text, prepare_prompts


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


def run_generation(parser, open_generator, argv=None):
    """The program of generation.

    Args:
        parser: `argparse.ArgumentParser` of `generate_parser`.
        open_generator: function from an `algpt2.checkpoints.checkpoint.Checkpoint`, an
            `algpt2.generation.continuation.Sampling`, the id of the token that ends a text, whether to stream, and the
            arguments, an `argparse.Namespace`, to the function that `algpt2.generation.continuation.continue_tokens`
            takes.
        argv: list of str; by default that of the process.
    """
    arguments = parser.parse_args(argv)
    with exit_on_error(parser.prog):
        sampling = Sampling(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Sampling)})
        if arguments.num_samples > 1 and sampling.is_greedy:
            raise InputError(
                f"--num-samples {arguments.num_samples}: greedy search would give the same text every time; "
                "add --temperature, --top-k or --top-p"
            )
        prompts = [arguments.prompt] if arguments.prompt_file is None else read_prompts(arguments.prompt_file)
        checkpoint = opened(arguments.checkpoint, arguments.framework)
        tokenizer, config = prepare_prompts(checkpoint, prompts), checkpoint.config
        stream = sys.stdout.isatty() if arguments.stream is None else arguments.stream
        if sampling.top_k and sampling.top_k > config.vocab_size:
            sampling = dataclasses.replace(sampling, top_k=config.vocab_size)
        generate = open_generator(checkpoint, sampling, tokenizer.eos_token_id, stream, arguments)
        for (number, prompt), sample in itertools.product(enumerate(prompts, 1), range(1, arguments.num_samples + 1)):
            if len(prompts) * arguments.num_samples > 1:
                print(f"=== prompt {number}, sample {sample} ===")
            parts = []
            write = functools.partial(print, end="", flush=True) if stream else parts.append
            continue_text(generate, tokenizer, prompt, arguments.max_new_tokens, config.n_positions, write)
            print("".join(parts), flush=True)


def read_prompts(path):
    """The prompts of a text file, one in each line that is not blank.

    Args:
        path: path.

    Returns:
        list of str.

    Raises:
        InputError: if the file cannot be read or holds none.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            prompts = [line.rstrip("\n") for line in file if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}); convert it first") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from error
    if not prompts:
        raise InputError(f"{path}: holds no prompt; write one in each line")
    return prompts
