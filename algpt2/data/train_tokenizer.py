"""Train a byte-level BPE tokenizer as GPT-2's: `python -m algpt2.tokenization train --help`."""

import itertools
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm

from algpt2.data.arguments import require_options_used, text_options
from algpt2.data.corpus import Documents, has_splits, read_documents
from algpt2.data.encoding import END_OF_TEXT, TOKENIZER_FILE, encode_batch, safe_cut, safe_pieces
from algpt2.data.lines import lines
from algpt2.data.tokenizer import fast_tokenizer, save_tokenizer
from algpt2.errors import InputError
from algpt2.files.atomic import files_replaced_in

FIGURE_FILE = "token_lengths.png"
# What a trained tokenizer is tried on.
SAMPLE_LINES = 10_000


def train_tokenizer(documents, vocab_size, special_tokens=(END_OF_TEXT,), add_prefix_space=False):
    """Train a byte-level BPE tokenizer as GPT-2's.

    A vocabulary that cannot be filled, since the text has too few pairs to merge, is reported on standard error.

    Args:
        documents: `algpt2.data.corpus.Documents`, read once in pieces, or an iterable of str.
        vocab_size: int. The size of the vocabulary, at least 256 for all bytes and the special tokens.
        special_tokens: sequence of str. The first ids; `<|endoftext|>`, which ends documents, is one of them.
            `<s>`, `<pad>`, `<unk>` and `<mask>` take their roles, and `<|endoftext|>` those that nothing else has.
        add_prefix_space: bool. Whether a text starts as if a space were before it.

    Returns:
        `transformers.PreTrainedTokenizerFast`.

    Raises:
        InputError: if `vocab_size` is too small, or the special tokens are wrong.

    References:
        Radford et al., 2019, Language Models are Unsupervised Multitask Learners, section 2.2.

    Example:
        >>> tokenizer = train_tokenizer(["low lower lowest"] * 10, vocab_size=260)
        >>> tokenizer.decode(tokenizer.encode("lowest"))
        'lowest'
    """
    special_tokens = list(special_tokens)
    if END_OF_TEXT not in special_tokens:
        raise InputError(f"the special tokens are {special_tokens}; {END_OF_TEXT} must be among them")
    if "" in special_tokens or len(set(special_tokens)) < len(special_tokens):
        raise InputError(f"the special tokens are {special_tokens}; each must be there once, and not empty")
    least = 256 + len(special_tokens)
    if vocab_size < least:
        what = END_OF_TEXT if len(special_tokens) == 1 else f"{len(special_tokens)} special tokens"
        raise InputError(f"vocab_size {vocab_size} is too small: 256 bytes and {what} need at least {least}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    if not isinstance(documents, Documents):
        documents = Documents.of(documents)
    tokenizer.train_from_iterator(_training_texts(documents, safe_cut(tokenizer)), trainer)
    if (size := tokenizer.get_vocab_size()) < vocab_size:
        print(
            f"the text has too few pairs to merge for {vocab_size:,} tokens; the vocabulary has {size:,}",
            file=sys.stderr,
            flush=True,
        )
    return fast_tokenizer(tokenizer, END_OF_TEXT, special_tokens)


def _training_texts(documents, cut):
    with tqdm(
        desc="reading text", total=documents.size, unit="B", unit_scale=True, leave=False, delay=2, disable=None
    ) as bar:
        for pieces in documents.pieces():
            for text in safe_pieces((piece.text for piece in pieces), cut):
                bar.update(len(text))
                yield text


def check_tokenizer(tokenizer, documents, shown=3):
    """Print what a tokenizer makes of a text: some lines, unknown tokens, tokens per word and per byte.

    Args:
        tokenizer: `transformers.PreTrainedTokenizerFast`.
        documents: `algpt2.data.corpus.Documents`; their first 10,000 lines are used.
        shown: int. The lines that are printed.

    Returns:
        list of int: the tokens of each line.
    """
    found = (line for pieces in documents.pieces() for line in lines(piece.text for piece in pieces))
    sample = list(itertools.islice(filter(str.strip, found), SAMPLE_LINES))
    encoded = encode_batch(tokenizer, sample)
    lengths = list(map(len, encoded))
    total = sum(lengths)
    print(f"{len(tokenizer):,} tokens; special:", *(f"{t} {i}" for i, t in _special_tokens(tokenizer)))
    for line, ids in itertools.islice(zip(sample, encoded, strict=True), shown):
        print(f"text    {line[:100]}\ntokens  {' | '.join(tokenizer.convert_ids_to_tokens(ids[:24]))}")
    unknown = sum(ids.count(tokenizer.unk_token_id) for ids in encoded)
    words, size = sum(len(line.split()) for line in sample), sum(len(line.encode()) for line in sample)
    print(
        f"in {len(sample):,} lines: {total:,} tokens, {unknown / total:.2%} of them {tokenizer.unk_token}; "
        f"{total / words:.3f} tokens a word, {total / size:.3f} a byte"
    )
    return lengths


def draw_lengths(tokenizer, lengths, path):
    """Draw how long the tokens of the vocabulary are, and how many tokens lines take.

    Args:
        tokenizer: `transformers.PreTrainedTokenizerFast`.
        lengths: list of int, the tokens of each line.
        path: path of the PNG file.
    """
    from matplotlib.figure import Figure

    special = {token for _, token in _special_tokens(tokenizer)}
    # In byte-level BPE a character of a token stands for a byte.
    sizes = [len(token) for token in tokenizer.get_vocab() if token not in special]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(sizes, bins=range(1, max(sizes) + 2), align="left")
    left.set(xlabel="bytes of a token", ylabel="tokens of the vocabulary")
    right.hist(lengths, bins=50)
    right.set(xlabel="tokens of a line", ylabel="lines", yscale="log")
    figure.savefig(path, dpi=120)


def _special_tokens(tokenizer):
    return sorted((i, str(t)) for i, t in tokenizer.added_tokens_decoder.items())


def run(arguments):
    """The program of `algpt2.tokenization`.

    Args:
        arguments: `argparse.Namespace` of its command line.

    Raises:
        InputError: if a tokenizer is there already, or the text or the arguments are wrong.
    """
    directory = Path(arguments.output_dir)
    if (directory / TOKENIZER_FILE).exists() and not arguments.overwrite:
        raise InputError(f"{directory}: holds a tokenizer; give another --output-dir, or --overwrite to replace it")
    require_options_used(arguments)
    splits = arguments.splits or ("train" if has_splits(arguments.dataset) else None)
    documents = read_documents(arguments.dataset, text_options(arguments), splits)
    tokenizer = train_tokenizer(
        documents, arguments.vocab_size, arguments.special_tokens or (END_OF_TEXT,), arguments.add_prefix_space
    )
    lengths = check_tokenizer(tokenizer, documents)
    with files_replaced_in(directory) as temporary:
        save_tokenizer(tokenizer, temporary)
        draw_lengths(tokenizer, lengths, temporary / FIGURE_FILE)
    print(f"wrote {directory / TOKENIZER_FILE} and {directory / FIGURE_FILE}")
