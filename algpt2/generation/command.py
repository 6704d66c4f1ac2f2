"""The program of generation, the same for both frameworks."""

import dataclasses
import functools
import itertools
import sys

from algpt2.checkpoints.checkpoint import opened
from algpt2.errors import InputError
from algpt2.generation.continuation import Sampling, continue_text, prepare_prompts


def run_generation(arguments, open_generator, open_checkpoint=opened):
    """Continue texts, and print them.

    Args:
        arguments: `argparse.Namespace` of `algpt2.generation.arguments.generate_parser`.
        open_generator: function from an `algpt2.checkpoints.checkpoint.Checkpoint`, an
            `algpt2.generation.continuation.Sampling`, the id of the token that ends a text, whether to stream, and the
            arguments, an `argparse.Namespace`, to the function that `algpt2.generation.continuation.continue_tokens`
            takes.
        open_checkpoint: function of the directory and the framework, to such a checkpoint.

    Raises:
        InputError: for anything wrong in the arguments, the checkpoint or the prompts.
    """
    sampling = Sampling(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Sampling)})
    if arguments.num_samples > 1 and sampling.is_greedy:
        raise InputError(
            f"--num-samples {arguments.num_samples}: greedy search would give the same text every time; "
            "add --temperature, --top-k or --top-p"
        )
    prompts = [arguments.prompt] if arguments.prompt_file is None else read_prompts(arguments.prompt_file)
    checkpoint = open_checkpoint(arguments.checkpoint, arguments.framework)
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
