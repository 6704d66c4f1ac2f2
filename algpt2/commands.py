"""The command lines of evaluation and generation, the same for both frameworks."""

import argparse
import json

from algpt2.arguments import HelpFormatter, add_dataset_arguments, positive_float, positive_int, probability, seed
from algpt2.checkpoint import find_checkpoint, read_config
from algpt2.corpus import PYTHON_DOCS, read_corpus, read_files
from algpt2.errors import InputError
from algpt2.packing import tokenize
from algpt2.run import block_length
from algpt2.tokenization import load_tokenizer


def evaluate_parser(program, description):
    """The command line of evaluation.

    Args:
        program: str. The name that usage messages show.
        description: str.

    Returns:
        `argparse.ArgumentParser`.
    """
    parser = _checkpoint_parser(program, description)
    add_dataset_arguments(parser, f"a text file, a quoted glob of text files, or {PYTHON_DOCS} for its held-out part")
    parser.add_argument("--length", type=positive_int, metavar="N", help="tokens in a block (default: n_positions)")
    parser.add_argument("--batch-size", type=positive_int, default=16, metavar="N", help="blocks at once")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


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


def validation_text(checkpoint, dataset, length=None):
    """The tokens to evaluate a checkpoint on, made with its tokenizer.

    Args:
        checkpoint: str or path. A directory with a configuration and a tokenizer, or the id of a hub repository.
        dataset: str. As `--dataset`.
        length: int. The tokens of a block; `None` means the configuration's `n_positions`.

    Returns:
        tuple of the `TokenizedText` and the length of a block.

    Raises:
        InputError: if anything is missing or does not fit.
    """
    directory = find_checkpoint(checkpoint)
    config = read_config(directory)
    length = block_length(length, config)
    tokenizer = checkpoint_tokenizer(directory, config)
    documents = read_corpus(dataset).validation if dataset == PYTHON_DOCS else read_files(dataset)
    text = tokenize(documents, tokenizer)
    if len(text.tokens) < 2:
        raise InputError(f"{dataset}: there is no token to predict; give more text")
    return text, length


def print_evaluation(evaluation, as_json):
    """Print an `algpt2.evaluation.Evaluation`, as a line or as JSON."""
    values = {
        "protocol": evaluation.protocol,
        "tokens": evaluation.tokens,
        "loss": evaluation.loss,
        "perplexity": evaluation.perplexity,
    }
    if as_json:
        print(json.dumps(values))
    else:
        print(
            f"protocol {evaluation.protocol}: {evaluation.tokens} tokens, "
            f"loss {evaluation.loss:.6f}, perplexity {evaluation.perplexity:.4f}"
        )


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
