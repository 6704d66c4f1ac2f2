"""Train a tokenizer by the command line of tGhattas/ALGPT2: `python -m algpt2_pt.train_tokenizer --dataset_path X`."""

import glob
import os
import re

from algpt2 import tokenization
from algpt2.cli import Parser
from algpt2.data.corpus import PYTHON_DOCS

VOCAB_SIZE = 50257
SPECIAL_TOKENS = ("<|endoftext|>", "<s>", "<pad>", "</s>", "<unk>", "<mask>")
SPLITS = "train,validation,test"


def tokenizer_directory(dataset):
    """Where the tokenizer of a data set is kept.

    Args:
        dataset: str, as `--dataset_path`.

    Returns:
        str.

    Example:
        >>> tokenizer_directory("wikitext-2-v1")
        'tokenizer/wikitext-2-v1'
    """
    return os.path.join("tokenizer", file_name(dataset))


def file_name(dataset):
    """A data set's name as one that a file may have."""
    return re.sub(r"[^\w.-]+", "_", dataset).strip("_")


def tokenization_arguments(dataset):
    """What `python -m algpt2.tokenization` is to be called with.

    Args:
        dataset: str, as `--dataset_path`: a data set of the hub, whose splits are all used, or local text.

    Returns:
        list of str.
    """
    names = "train,validation" if dataset == PYTHON_DOCS else SPLITS
    splits = [] if os.path.exists(dataset) or glob.has_magic(dataset) else ["--splits", names]
    return [
        *("train", "--dataset", dataset, *splits, "--vocab-size", str(VOCAB_SIZE), "--add-prefix-space"),
        *("--special-tokens", *SPECIAL_TOKENS, "--output-dir", tokenizer_directory(dataset), "--overwrite"),
    ]


def main(argv=None):
    parser = Parser(
        takes_empty=True,
        prog="python -m algpt2_pt.train_tokenizer",
        description="Train a byte-level BPE tokenizer of at most 50,257 tokens, with a prefix space and six special "
        "tokens, into tokenizer/NAME.",
    )
    parser.add_argument("--dataset_path", default="wikitext-103-raw-v1", help="a data set of the hub, or local text")
    tokenization.main(tokenization_arguments(parser.parse_args(argv).dataset_path))
