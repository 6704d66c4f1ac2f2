"""The command lines of evaluation and generation, the same for both frameworks."""

import argparse
import dataclasses
import functools
import itertools
import json
import sys

from algpt2.arguments import (
    HelpFormatter,
    add_dataset_arguments,
    positive_float,
    positive_int,
    probability,
    seed,
    text_options,
)
from algpt2.checkpoint import find_checkpoint, read_config
from algpt2.corpus import DEFAULT_OPTIONS, PYTHON_DOCS, read_documents
from algpt2.errors import InputError, exit_on_error
from algpt2.evaluation import PROTOCOLS, evaluate
from algpt2.generation import Sampling, continue_text
from algpt2.other_framework import FRAMEWORKS, evaluate_in_other
from algpt2.packing import tokenize
from algpt2.preparation import block_length
from algpt2.reporting import check_figure, difference, draw_depths, evaluation_table, record
from algpt2.tokenization import check_vocabulary, load_tokenizer

FIGURE_FILE = "depth-perplexity.png"


def evaluate_parser(package):
    """The command line of evaluation.

    Args:
        package: str. `"algpt2_pt"` or `"algpt2_tf"`.

    Returns:
        `argparse.ArgumentParser`.
    """
    parser = _checkpoint_parser(package, "evaluate", "Perplexity of a checkpoint")
    text = parser.add_argument_group("text")
    add_dataset_arguments(text, f"a file, folder, quoted glob or hub data set, or {PYTHON_DOCS} for its held-out part")
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="stream",
        help="one token stream cut into blocks; every line by itself; or a window that slides over the stream",
    )
    protocol.add_argument("--length", type=positive_int, metavar="N", help="tokens in a row (default: n_positions)")
    protocol.add_argument(
        "--stride",
        type=positive_int,
        metavar="N",
        help="tokens between windows, of sliding (default: half a row)",
    )
    protocol.add_argument("--batch-size", type=positive_int, default=16, metavar="N", help="rows at once")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--depth",
        type=depth_list,
        metavar="N[,N...]",
        help="apply the same blocks this often; several give a table and a figure (default: n_layer)",
    )
    model.add_argument(
        "--compare", metavar="DIR", help="evaluate this checkpoint in the other framework as well, and compare"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--figure", metavar="FILE", help=f"of several depths (default: {FIGURE_FILE})")
    output.add_argument("--json", action="store_true", help="print JSON: an object, or a list of one for each depth")
    return parser


def depth_list(text):
    """The depths of `--depth`, such as `2,4,6`, each once."""
    return list(dict.fromkeys(positive_int(part) for part in text.split(",")))


depth_list.__name__ = "list of depths"


def run_evaluation(package, losses_at_depths, argv=None):
    """The program of evaluation.

    Args:
        package: str. `"algpt2_pt"` or `"algpt2_tf"`, which computes.
        losses_at_depths: function from a checkpoint directory and a list of depths, `None` for the checkpoint's own,
            to an iterator over the functions that `algpt2.evaluation.evaluate` takes, one for each depth. In PyTorch it
            takes `quantize` as well, which is `"int8"` or `None`.
        argv: list of str; by default that of the process.
    """
    parser = evaluate_parser(package)
    arguments = parser.parse_args(argv)
    with exit_on_error(parser.prog):
        if arguments.stride and arguments.protocol != "sliding":
            raise InputError("--stride is for --protocol sliding")
        depths = arguments.depth or [None]
        figure = arguments.figure or FIGURE_FILE
        if arguments.figure and len(depths) == 1:
            raise InputError("--figure draws perplexity over depth; give several depths, such as --depth 2,4,6")
        check_figure(figure)
        directory = find_checkpoint(arguments.checkpoint)
        own_depth = _check_depths(directory, depths)
        text, length = validation_text(
            directory,
            arguments.dataset,
            arguments.length,
            by="line" if arguments.protocol == "line" else "document",
            options=text_options(arguments),
        )
        compared = evaluate_in_other(package, parser, arguments) if arguments.compare else [None] * len(depths)
        records = []
        for depth, losses, other in zip(
            depths, losses_at_depths(directory, depths, **_model_options(arguments)), compared, strict=True
        ):
            result = evaluate(
                losses, text, length, arguments.batch_size, arguments.protocol, arguments.stride, progress=True
            )
            context = {"checkpoint": str(arguments.checkpoint), "framework": FRAMEWORKS[package]}
            context["dataset"] = arguments.dataset
            row = record(result, **context, depth=depth or own_depth)
            records.append({**row, "compared": other, "difference": difference(row, other)} if other else row)
        if arguments.json:
            print(json.dumps(records if len(records) > 1 else records[0], allow_nan=False))
        elif len(records) > 1 or arguments.compare:
            print(f"{arguments.dataset}, protocol {result.name}\n\n{evaluation_table(records)}")
        else:
            print(
                f"{arguments.dataset}, protocol {result.name}: {result.tokens} tokens, loss {result.loss:.6f}, "
                f"perplexity {result.perplexity:.4f}, word perplexity {_shown(result.word_perplexity)}, "
                f"bits per byte {_shown(result.bits_per_byte)}"
            )
        if len(records) > 1:
            draw_depths(records, own_depth, figure)
            print(f"wrote {figure}", file=sys.stderr)


def _shown(value):
    return "unknown" if value is None else f"{value:.4f}"


def _check_depths(directory, depths):
    """The checkpoint's own depth; raises an InputError for a depth at which its blocks cannot be applied."""
    own = read_config(directory)
    for depth in filter(None, depths):
        needed = read_config(directory, n_layer=depth).n_block
        if needed != own.n_block:
            raise InputError(f"--depth {depth}: needs {needed} blocks, {directory} has {own.n_block}")
    return own.n_layer


def checkpoint_tokenizer(directory, config):
    """The tokenizer of a checkpoint, checked against its configuration.

    Args:
        directory: path.
        config: `ALGPT2Config`.

    Returns:
        `transformers.PreTrainedTokenizerFast`.

    Raises:
        InputError: if it cannot be read, has no end-of-text token or more tokens than the model.
    """
    tokenizer = load_tokenizer(directory)
    if tokenizer.eos_token_id is None:
        raise InputError(f"{directory}: the tokenizer has no eos_token; name it in tokenizer_config.json")
    check_vocabulary(tokenizer, config, directory)
    return tokenizer


def validation_text(checkpoint, dataset, length=None, by="document", options=DEFAULT_OPTIONS):
    """The tokens to evaluate a checkpoint on, made with its tokenizer.

    Args:
        checkpoint: str or path. A directory with a configuration and a tokenizer, or the id of a hub repository.
        dataset: str. As `--dataset`.
        length: int. The tokens of a row; `None` means the configuration's `n_positions`.
        by: str. What a row of the text is, as in `algpt2.packing.tokenize`.
        options: `algpt2.corpus.TextOptions`.

    Returns:
        tuple of the `TokenizedText` and the length of a row.

    Raises:
        InputError: if anything is missing or does not fit.
    """
    directory = find_checkpoint(checkpoint)
    config = read_config(directory)
    length = block_length(length, config)
    tokenizer = checkpoint_tokenizer(directory, config)
    documents = read_documents(dataset, options)
    text = tokenize(documents, tokenizer, by)
    if len(text.tokens) < 2:
        raise InputError(f"{dataset}: there is no token to predict; give more text")
    return text, length


def generate_parser(package):
    """The command line of generation.

    Args:
        package: str. `"algpt2_pt"` or `"algpt2_tf"`.

    Returns:
        `argparse.ArgumentParser`.
    """
    parser = _checkpoint_parser(package, "generate", "Continue a text with a checkpoint")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("prompt", nargs="?", help="the text to continue")
    text.add_argument("--prompt-file", metavar="FILE", help="a text file with a prompt in each line")
    parser.add_argument("--max-new-tokens", type=positive_int, default=64, metavar="N", help="the longest continuation")
    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--temperature", type=positive_float, metavar="X", help="sample at this temperature (default: greedy search)"
    )
    sampling.add_argument("--top-k", type=positive_int, metavar="N", help="sample among the N likeliest tokens")
    sampling.add_argument("--top-p", type=probability, metavar="X", help="sample among the likeliest of this mass")
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


def run_generation(package, open_generator, argv=None):
    """The program of generation.

    Args:
        package: str. `"algpt2_pt"` or `"algpt2_tf"`, which computes.
        open_generator: function from a checkpoint directory, `algpt2.generation.Sampling`, the id of the token that
            ends a text and whether to stream, to the function that `algpt2.generation.continue_tokens` takes. In
            PyTorch it takes `quantize` as well, which is `"int8"` or `None`.
        argv: list of str; by default that of the process.
    """
    parser = generate_parser(package)
    arguments = parser.parse_args(argv)
    with exit_on_error(parser.prog):
        sampling = Sampling(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Sampling)})
        if arguments.num_samples > 1 and sampling.is_greedy:
            raise InputError(
                f"--num-samples {arguments.num_samples}: greedy search would give the same text every time; "
                "add --temperature, --top-k or --top-p"
            )
        prompts = [arguments.prompt] if arguments.prompt_file is None else read_prompts(arguments.prompt_file)
        directory, config, tokenizer = prepare_prompts(arguments.checkpoint, prompts)
        stream = sys.stdout.isatty() if arguments.stream is None else arguments.stream
        if sampling.top_k and sampling.top_k > config.vocab_size:
            sampling = dataclasses.replace(sampling, top_k=config.vocab_size)
        generate = open_generator(directory, sampling, tokenizer.eos_token_id, stream, **_model_options(arguments))
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


def prepare_prompts(checkpoint, prompts):
    """What both frameworks need to continue texts, checked before a model is loaded.

    A prompt that does not fit into the context is told of on standard error.

    Args:
        checkpoint: str or path. A directory, or the id of a hub repository.
        prompts: list of str.

    Returns:
        tuple of the directory, the `ALGPT2Config` and the tokenizer.

    Raises:
        InputError: if the checkpoint has no usable tokenizer, or a prompt no tokens.
    """
    directory = find_checkpoint(checkpoint)
    config = read_config(directory)
    tokenizer = checkpoint_tokenizer(directory, config)
    if config.n_positions < 2:
        raise InputError(f"{directory}: n_positions is {config.n_positions}; a text to continue needs at least 2")
    for prompt in prompts:
        try:
            length = len(tokenizer.backend_tokenizer.encode(prompt))
        except (TypeError, UnicodeEncodeError) as error:
            raise InputError(f"the prompt {prompt!r} is not valid Unicode text") from error
        if not length:
            raise InputError("the prompt has 0 tokens; give some text")
        if length >= config.n_positions:
            kept = config.n_positions - config.n_positions // 2
            print(
                f"a prompt has {length} tokens, the context {config.n_positions}: continuing its last {kept}",
                file=sys.stderr,
            )
    return directory, config, tokenizer


def _checkpoint_parser(package, program, description):
    parser = argparse.ArgumentParser(
        prog=f"python -m {package}.{program}",
        description=f"{description}, in {FRAMEWORKS[package]}.",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("checkpoint", help="a checkpoint directory, or the id of a hub repository")
    if package == "algpt2_pt":
        parser.add_argument("--quantize", choices=("int8",), help="on a CPU: round the weights, for speed")
    return parser


def _model_options(arguments):
    return {"quantize": arguments.quantize} if "quantize" in arguments else {}
