"""The program of generation, the same for both frameworks."""

import contextlib
import dataclasses
import functools
import itertools
import sys

from algpt2.data.lines import lines
from algpt2.errors import InputError, interruptible
from algpt2.generation.continuation import Sampling, continue_text, prepare_prompts, prompt_length
from algpt2.generation.speed import Speed


def run_generation(arguments, open_generator, open_checkpoint):
    """Continue texts, and print them.

    Args:
        arguments: `argparse.Namespace` of `algpt2.generation.arguments.generate_parser`.
        open_generator: function from an `algpt2.checkpoints.checkpoint.Checkpoint` or what `open_checkpoint` gives, an
            `algpt2.generation.continuation.Sampling`, the id of the token that ends a text, whether to stream, and the
            arguments, an `argparse.Namespace`, to the function that `algpt2.generation.continuation.continue_tokens`
            takes.
        open_checkpoint: function of the directory and the framework, to such a checkpoint.

    Raises:
        InputError: for anything wrong in the arguments, the checkpoint or the prompts.
    """
    sampling = Sampling(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Sampling)})
    _check(arguments, sampling)
    prompts = _prompts(arguments)
    checkpoint = open_checkpoint(arguments.checkpoint, arguments.framework)
    tokenizer, config = prepare_prompts(checkpoint, prompts), checkpoint.config
    stream = sys.stdout.isatty() if arguments.stream is None else arguments.stream
    # The likeliest of several texts is known at their end.
    stream = stream and sampling.num_beams == 1
    sampling = sampling.among(config.vocab_size)
    generate = open_generator(checkpoint, sampling, tokenizer.eos_token_id, stream, arguments)
    if arguments.speed or arguments.draft_depth:
        generate = Speed(generate)
        if sampling.is_greedy:
            # Warming up would advance the random state: other tokens would be drawn afterwards.
            generate.warm_up(min(2, config.n_positions - 1))

    def write_continuation(prompt, write):
        parts = []
        limits = arguments.max_new_tokens, config.n_positions
        options = {"stop": arguments.stop or (), "at_once": sampling.num_beams > 1}
        continue_text(generate, tokenizer, prompt, *limits, write if stream else parts.append, **options)
        write("".join(parts))

    if arguments.interactive:
        with interruptible():
            _converse(tokenizer, write_continuation, *prompts)
    else:
        _continue_each(prompts, arguments.num_samples, write_continuation)
    if isinstance(generate, Speed):
        print(generate, file=sys.stderr)


def _continue_each(prompts, num_samples, write_continuation):
    write = functools.partial(print, end="", flush=True)
    for (number, prompt), sample in itertools.product(enumerate(prompts, 1), range(1, num_samples + 1)):
        if len(prompts) * num_samples > 1:
            print(f"=== prompt {number}, sample {sample} ===")
        write(prompt)
        write_continuation(prompt, write)
        print(flush=True)


def _check(arguments, sampling):
    if arguments.prompt is not None and arguments.prompt_file is not None:
        raise InputError("argument --prompt-file: not allowed with a prompt; give one of them")
    if sampling.num_beams > 1 and not sampling.is_greedy:
        raise InputError(
            f"--num-beams {sampling.num_beams} searches the likeliest text and draws nothing; leave out --temperature, "
            "--top-k, --top-p and --min-p"
        )
    if arguments.num_samples > 1 and sampling.is_greedy:
        raise InputError(
            f"--num-samples {arguments.num_samples}: a search would give the same text every time; "
            "add --temperature, --top-k, --top-p or --min-p"
        )
    if arguments.interactive and (arguments.prompt_file or arguments.num_samples > 1 or arguments.prompt == "-"):
        raise InputError("--interactive reads what is typed; leave out --prompt-file, --num-samples and -")
    if arguments.draft_depth and (not sampling.is_greedy or sampling.num_beams > 1 or sampling.repetition_penalty != 1):
        raise InputError(
            f"--draft-depth {arguments.draft_depth} is for greedy search, whose next token is the likeliest one; leave "
            "out --temperature, --top-k, --top-p, --min-p, --num-beams and --repetition-penalty"
        )
    if "" in (arguments.stop or ()):
        raise InputError("--stop is followed by an empty text, with which every text ends; give some text")


def _prompts(arguments):
    if arguments.prompt_file is not None:
        return read_prompts(arguments.prompt_file)
    if arguments.interactive:
        return [arguments.prompt] if arguments.prompt else []
    if arguments.prompt not in (None, "-"):
        return [arguments.prompt]
    if arguments.prompt is None and sys.stdin.isatty():
        raise InputError("there is no prompt; give one, --prompt-file, --interactive, or text on standard input")
    return [_text_of(sys.stdin.buffer.read(), "standard input").removesuffix("\n")]


def _converse(tokenizer, write_continuation, text=""):
    """Go on from every line that is typed, with all of the text so far before it, until standard input ends."""
    shown = "> " if sys.stdin.isatty() else ""
    if shown:
        with contextlib.suppress(ImportError):
            # It lets `input` edit lines.
            import readline  # noqa: F401

    def write(part):
        nonlocal text
        text += part
        print(part, end="", flush=True)

    def go_on():
        # Ctrl-C ends a continuation, not the conversation.
        with contextlib.suppress(KeyboardInterrupt):
            write_continuation(text, write)
        print(flush=True)

    if text:
        print(text, end="", flush=True)
        go_on()
    while True:
        try:
            line = input(shown)
        except EOFError:
            return
        before = text
        text += ("\n" if text and not text.endswith("\n") else "") + line
        try:
            prompt_length(tokenizer, text)
        except InputError as error:
            text = before
            print(error, file=sys.stderr)
        else:
            go_on()


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
        with open(path, "rb") as file:
            content = file.read()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from error
    prompts = [line for line in lines([_text_of(content, path)]) if line.strip()]
    if not prompts:
        raise InputError(f"{path}: holds no prompt; write one in each line")
    return prompts


def _text_of(content, source):
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 text ({error.reason}); convert it first") from error
