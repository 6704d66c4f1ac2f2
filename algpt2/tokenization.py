"""Train, load and save the byte-level BPE tokenizer; tokenizer.json is its truth."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from algpt2.checkpoint import TOKENIZER_FILE
from algpt2.errors import InputError

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(documents, vocab_size):
    """Train a byte-level BPE tokenizer as GPT-2's, with `<|endoftext|>` as id 0.

    Args:
        documents: list of str.
        vocab_size: int. The size of the vocabulary, at least 257: all bytes and `<|endoftext|>`.

    Returns:
        `transformers.PreTrainedTokenizerFast`. Its vocabulary is smaller if the text has too few pairs to merge.

    Raises:
        InputError: if `vocab_size` is too small.

    References:
        Radford et al., 2019, Language Models are Unsupervised Multitask Learners, section 2.2.

    Example:
        >>> tokenizer = train_tokenizer(["low lower lowest"] * 10, vocab_size=260)
        >>> tokenizer.decode(tokenizer.encode("lowest"))
        'lowest'
    """
    if vocab_size < 257:
        raise InputError(f"vocab_size {vocab_size} is too small: 256 bytes and {END_OF_TEXT} need at least 257")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return _fast_tokenizer(tokenizer, END_OF_TEXT)


def load_tokenizer(directory):
    """The tokenizer of a directory that holds tokenizer.json.

    Args:
        directory: path.

    Returns:
        `transformers.PreTrainedTokenizerFast`.

    Raises:
        InputError: if tokenizer.json is missing or damaged.
    """
    path = Path(directory) / TOKENIZER_FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a directory with a {TOKENIZER_FILE}")
    try:
        return PreTrainedTokenizerFast.from_pretrained(path.parent)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise InputError(f"{path}: not readable as a tokenizer ({error})") from error


def save_tokenizer(tokenizer, directory, end_token=END_OF_TEXT):
    """Write tokenizer.json and tokenizer_config.json, as transformers' AutoTokenizer reads them.

    Args:
        tokenizer: `tokenizers.Tokenizer`.
        directory: path.
        end_token: str. The token that ends a document.
    """
    _fast_tokenizer(tokenizer, end_token).save_pretrained(directory)


def _fast_tokenizer(tokenizer, end_token):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end_token, eos_token=end_token, unk_token=end_token, pad_token=end_token
    )
