"""The command lines of evaluation and generation, the same for both frameworks."""

import argparse
import importlib.util
import json
import subprocess
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
from algpt2.packing import tokenize
from algpt2.reporting import check_figure, difference, draw_depths, evaluation_table, record
from algpt2.run import block_length
from algpt2.tokenization import load_tokenizer

FRAMEWORKS = {"algpt2_pt": "PyTorch", "algpt2_tf": "TensorFlow"}
LIBRARIES = {"algpt2_pt": "torch", "algpt2_tf": "tensorflow"}
FIGURE_FILE = "depth-perplexity.png"


def evaluate_parser(package):
    """The command line of evaluation.

    Args:
        package: str. `"algpt2_pt"` or `"algpt2_tf"`.

    Returns:
        `argparse.ArgumentParser`.
    """
    parser = _checkpoint_parser(
        f"python -m {package}.evaluate", f"Perplexity of a checkpoint, computed by {FRAMEWORKS[package]}."
    )
    text = parser.add_argument_group("text")
    add_dataset_arguments(text, f"a text file, a quoted glob of text files, or {PYTHON_DOCS} for its held-out part")
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
            to an iterator over the functions that `algpt2.evaluation.evaluate` takes, one for each depth.
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
        compared = _evaluate_in_other(package, parser, arguments) if arguments.compare else [None] * len(depths)
        records = []
        for depth, losses, other in zip(depths, losses_at_depths(directory, depths), compared, strict=True):
            result = evaluate(
                losses, text, length, arguments.batch_size, arguments.protocol, arguments.stride, progress=True
            )
            context = {"checkpoint": str(arguments.checkpoint), "framework": FRAMEWORKS[package]}
            row = record(result, **context, depth=depth or own_depth)
            records.append({**row, "compared": other, "difference": difference(row, other)} if other else row)
        if arguments.json:
            print(json.dumps(records if len(records) > 1 else records[0], allow_nan=False))
        elif len(records) > 1 or arguments.compare:
            print(f"protocol {result.name}\n\n{evaluation_table(records)}")
        else:
            print(
                f"protocol {result.name}: {result.tokens} tokens, loss {result.loss:.6f}, "
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


def _evaluate_in_other(package, parser, arguments):
    """The records of `--compare`, from the other framework in a process of its own."""
    other = next(name for name in FRAMEWORKS if name != package)
    if importlib.util.find_spec(LIBRARIES[other]) is None:
        raise InputError(f"--compare: {FRAMEWORKS[other]} is not installed; pip install {LIBRARIES[other]}")
    options = _options(parser, arguments, without=("compare", "figure", "json"))
    command = [sys.executable, "-m", f"{other}.evaluate", arguments.compare, "--json", *options]
    print(f"evaluating {arguments.compare} in {FRAMEWORKS[other]}", file=sys.stderr, flush=True)
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        # The frameworks write notes of their own before the message.
        _, found, message = process.stderr.rpartition(f"python -m {other}.evaluate: error: ")
        raise InputError(f"--compare, in {FRAMEWORKS[other]}: {message if found else process.stderr}".rstrip())
    records = json.loads(process.stdout.splitlines()[-1])
    return records if isinstance(records, list) else [records]


def _options(parser, arguments, without):
    """Options that parse to the given arguments again."""
    options, values = [], {name: value for name, value in vars(arguments).items() if name not in without}
    for action in parser._actions:
        value = values.get(action.dest, action.default)
        if not action.option_strings or value == action.default:
            continue
        flag = action.option_strings[-1]
        if action.nargs == 0:
            options.append(flag)
        elif action.type is depth_list:
            options.append(f"{flag}={','.join(map(str, value))}")
        elif isinstance(value, list):
            options += [flag, *map(str, value)]
        else:
            options.append(f"{flag}={value}")
    return options


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
    if len(tokenizer) > config.vocab_size:
        raise InputError(f"{directory}: the tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size}")
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


def generate_parser(program, description):
    """The command line of generation.

    Args:
        program: str. The name that usage messages show.
        description: str.

    Returns:
        `argparse.ArgumentParser`.
    """
    parser = _checkpoint_parser(program, description)
    parser.add_argument("prompt", help="the text to continue")
    parser.add_argument("--max-new-tokens", type=positive_int, default=64, metavar="N", help="the longest continuation")
    parser.add_argument(
        "--temperature", type=positive_float, metavar="X", help="sample at this temperature (default: greedy search)"
    )
    parser.add_argument("--top-k", type=positive_int, metavar="N", help="sample among the N likeliest tokens")
    parser.add_argument("--top-p", type=probability, metavar="X", help="sample among the likeliest of this mass")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of sampling")
    return parser


def prepare_prompt(checkpoint, prompt, max_new_tokens):
    """What both frameworks need to continue a text, checked before a model is loaded.

    Args:
        checkpoint: str or path. A directory, or the id of a hub repository.
        prompt: str.
        max_new_tokens: int.

    Returns:
        tuple of the directory, the tokenizer, and the length that prompt and continuation may take together.

    Raises:
        InputError: if the checkpoint has no usable tokenizer, or the prompt is empty or fills the context.
    """
    directory = find_checkpoint(checkpoint)
    config = read_config(directory)
    tokenizer = checkpoint_tokenizer(directory, config)
    length = len(tokenizer.encode(prompt))
    if not 0 < length < config.n_positions:
        raise InputError(f"the prompt has {length} tokens; it must have 1 to {config.n_positions - 1}")
    return directory, tokenizer, min(config.n_positions, length + max_new_tokens)


def _checkpoint_parser(program, description):
    parser = argparse.ArgumentParser(prog=program, description=description, formatter_class=HelpFormatter)
    parser.add_argument("checkpoint", help="a checkpoint directory, or the id of a hub repository")
    return parser
