"""Train, load and save the byte-level BPE tokenizer; tokenizer.json is its truth."""

import argparse
import hashlib
import itertools
import json
import re
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerFast

from algpt2.arguments import HelpFormatter, add_dataset_arguments, positive_int, text_options
from algpt2.checkpoint import TOKENIZER_FILE, files_replaced_in
from algpt2.corpus import PYTHON_DOCS, Documents, has_splits, read_documents
from algpt2.errors import InputError, exit_on_error

END_OF_TEXT = "<|endoftext|>"
# Documents end with END_OF_TEXT whatever other special tokens there are.
ROLES = {"bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>"}
SPECIAL_TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# GPT-2's files: the vocabulary, and the merges that belong to it; in a KerasHub preset last.
VOCABULARIES = {
    "vocab.json": "merges.txt",
    "assets/tokenizer/vocabulary.json": "assets/tokenizer/merges.txt",
}
# Characters of a text that is tokenized as one.
PIECE = 1 << 13
FIGURE_FILE = "token_lengths.png"
# What a trained tokenizer is tried on.
SAMPLE_LINES = 10_000


def train_tokenizer(documents, vocab_size, special_tokens=(END_OF_TEXT,), add_prefix_space=False):
    """Train a byte-level BPE tokenizer as GPT-2's.

    Args:
        documents: `algpt2.corpus.Documents`, read once in pieces, or an iterable of str.
        vocab_size: int. The size of the vocabulary, at least 256 for all bytes and the special tokens.
        special_tokens: sequence of str. The first ids; `<|endoftext|>`, which ends documents, is one of them.
            `<s>`, `<pad>`, `<unk>` and `<mask>` take their roles, and `<|endoftext|>` those that nothing else has.
        add_prefix_space: bool. Whether a text starts as if a space were before it.

    Returns:
        `transformers.PreTrainedTokenizerFast`. Its vocabulary is smaller if the text has too few pairs to merge.

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
    return _fast_tokenizer(tokenizer, END_OF_TEXT, special_tokens)


def _training_texts(documents, cut):
    with tqdm(
        desc="reading text", total=documents.size, unit="B", unit_scale=True, leave=False, delay=2, disable=None
    ) as bar:
        for pieces in documents.pieces():
            for text in safe_pieces((piece.text for piece in pieces), cut):
                bar.update(len(text))
                yield text


def safe_cut(tokenizer):
    """Where a text may be cut so that the parts have the tokens of the whole.

    Byte-level BPE splits a text into words before it merges anything, and never within white space that follows
    something else. A part that starts with a space gets no other as prefix.

    Args:
        tokenizer: `tokenizers.Tokenizer`.

    Returns:
        `re.Pattern` that matches, with no width, in such places; `None` if none are known for this tokenizer.
    """
    state = json.loads(tokenizer.to_str())
    splitter = state["pre_tokenizer"] or {}
    plain = state["normalizer"] is None and splitter.get("type") == "ByteLevel" and splitter.get("use_regex", True)
    # Added tokens are found before the text is split, and may take white space with them.
    across = any(token["rstrip"] or re.search(r"\S\s", token["content"]) for token in state["added_tokens"])
    if not plain or across:
        return None
    return re.compile(r"(?<=\S)(?= )" if splitter["add_prefix_space"] else r"(?<=\S)(?=[ \n])")


def safe_pieces(texts, cut, size=PIECE):
    """A document that comes in pieces, cut anew.

    Args:
        texts: iterable of str.
        cut: `re.Pattern` of the places where it may be cut, as of `safe_cut`; `None` leaves it whole.
        size: int. The characters of a new piece, at least.

    Yields:
        str, never empty.
    """
    rest = ""
    for text in texts:
        searched, start = len(rest), 0
        rest += text
        while cut and (place := cut.search(rest, max(start + size, searched))):
            yield rest[start : place.start()]
            start = place.start()
        rest = rest[start:]
    if rest:
        yield rest


def has_tokenizer(directory):
    """Whether a directory holds a tokenizer in one of the forms that `load_tokenizer` reads."""
    return _find_tokenizer(Path(directory)) is not None


def _find_tokenizer(directory):
    """The file of a tokenizer: tokenizer.json, or the vocabulary that GPT-2's merges belong to; `None` without one."""
    for name, merges in VOCABULARIES.items():
        if (directory / name).is_file() and (directory / merges).is_file():
            found = directory / name
            break
    else:
        found = None
    path = directory / TOKENIZER_FILE
    # KerasHub describes its tokenizer in a file of the same name.
    return path if path.is_file() and not (found and found.parent != directory) else found


def load_tokenizer(directory):
    """The tokenizer of a directory: tokenizer.json, or vocab.json and merges.txt, or those of a KerasHub preset.

    Args:
        directory: path.

    Returns:
        `transformers.PreTrainedTokenizerFast`.

    Raises:
        InputError: if it is missing or damaged.
    """
    directory = Path(directory)
    path = _find_tokenizer(directory)
    if path is None:
        raise InputError(f"{directory / TOKENIZER_FILE}: no such file; give a directory with a {TOKENIZER_FILE}")
    try:
        if path.name == TOKENIZER_FILE:
            tokenizer = PreTrainedTokenizerFast.from_pretrained(directory)
            if tokenizer.eos_token is None and END_OF_TEXT in tokenizer.get_vocab():
                # That of GPT-2 on the hub leaves it to the class.
                tokenizer.add_special_tokens({"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT})
            return tokenizer
        merges = directory / VOCABULARIES[str(path.relative_to(directory))]
        tokenizer = Tokenizer(models.BPE.from_file(str(path), str(merges)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([END_OF_TEXT])
        return _fast_tokenizer(tokenizer, END_OF_TEXT)
    except Exception as error:  # the tokenizers library raises bare Exceptions
        raise InputError(f"{path}: not readable as a tokenizer ({error})") from error


def special_token_ids(tokenizer):
    """The special tokens that a tokenizer names and a configuration knows.

    Args:
        tokenizer: `transformers.PreTrainedTokenizerFast`.

    Returns:
        dict of str, of `SPECIAL_TOKEN_FIELDS`, to int.
    """
    ids = {field: getattr(tokenizer, field) for field in SPECIAL_TOKEN_FIELDS}
    return {field: token for field, token in ids.items() if token is not None}


def stored_special_token_ids(directory):
    """As `special_token_ids`, of the tokenizer of a directory; empty if it has none."""
    return special_token_ids(load_tokenizer(directory)) if has_tokenizer(directory) else {}


def is_gpt2_tokenizer(tokenizer):
    """Whether a tokenizer splits texts as GPT-2's, whatever its vocabulary: what KerasHub's can do.

    Args:
        tokenizer: `transformers.PreTrainedTokenizerFast`.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    splitter, model = state["pre_tokenizer"] or {}, state["model"]
    return (
        (state["normalizer"], splitter.get("type"), model["type"]) == (None, "ByteLevel", "BPE")
        and (splitter["add_prefix_space"], splitter.get("use_regex", True)) == (False, True)
        and [token["content"] for token in state["added_tokens"]] == [END_OF_TEXT]
        and END_OF_TEXT in model["vocab"]
    )


def check_vocabulary(tokenizer, config, source):
    """Raise an InputError if a tokenizer has more tokens than a model.

    Args:
        tokenizer: `transformers.PreTrainedTokenizerFast`.
        config: `algpt2.ALGPT2Config`.
        source: path. Names the tokenizer in the error.
    """
    if len(tokenizer) > config.vocab_size:
        raise InputError(f"{source}: the tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size}")


def tokenizer_hash(content):
    """A hash of all that a tokenizer.json says of texts and their tokens.

    Args:
        content: str or bytes of the file.

    Returns:
        str.

    Raises:
        ValueError: if it is not JSON.
    """
    # The last call of a tokenizer leaves its truncation and padding there.
    state = {**json.loads(content), "truncation": None, "padding": None}
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def save_tokenizer(tokenizer, directory, end_token=END_OF_TEXT):
    """Write tokenizer.json and tokenizer_config.json, as transformers' AutoTokenizer reads them.

    Args:
        tokenizer: `tokenizers.Tokenizer`.
        directory: path.
        end_token: str. The token that ends a document.
    """
    _fast_tokenizer(tokenizer, end_token).save_pretrained(directory)


def _fast_tokenizer(tokenizer, end_token, special_tokens=()):
    tokens = {role: token if token in special_tokens else end_token for role, token in ROLES.items()}
    tokens["eos_token"] = end_token
    if "<mask>" in special_tokens:
        tokens["mask_token"] = "<mask>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def check_tokenizer(tokenizer, documents, shown=3):
    """Print what a tokenizer makes of a text: some lines, unknown tokens, tokens per word and per byte.

    Args:
        tokenizer: `transformers.PreTrainedTokenizerFast`.
        documents: `algpt2.corpus.Documents`; their first 10,000 lines are used.
        shown: int. The lines that are printed.

    Returns:
        list of int: the tokens of each line.
    """
    lines = (line for pieces in documents.pieces() for piece in pieces for line in piece.text.splitlines())
    lines = list(itertools.islice(filter(str.strip, lines), SAMPLE_LINES))
    encodings = tokenizer.backend_tokenizer.encode_batch(lines, add_special_tokens=False)
    lengths = [len(encoding.ids) for encoding in encodings]
    total = sum(lengths)
    print(f"{len(tokenizer):,} tokens; special:", *(f"{t} {i}" for i, t in _special_tokens(tokenizer)))
    for line, encoding in itertools.islice(zip(lines, encodings, strict=True), shown):
        print(f"text    {line[:100]}\ntokens  {' | '.join(encoding.tokens[:24])}")
    unknown = sum(encoding.ids.count(tokenizer.unk_token_id) for encoding in encodings)
    words, size = sum(len(line.split()) for line in lines), sum(len(line.encode()) for line in lines)
    print(
        f"in {len(lines):,} lines: {total:,} tokens, {unknown / total:.2%} of them {tokenizer.unk_token}; "
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


def _parser():
    parser = argparse.ArgumentParser(prog="python -m algpt2.tokenization", description="Train a tokenizer.")
    train = parser.add_subparsers(dest="command", required=True).add_parser(
        "train", help="byte-level BPE as GPT-2's", formatter_class=HelpFormatter
    )
    add_dataset_arguments(train, f"{PYTHON_DOCS}, a file, a folder, a quoted glob, or a hub data set")
    train.add_argument(
        "--splits", metavar="NAMES", help="splits to train on, with commas between (default: train; all of files)"
    )
    train.add_argument("--vocab-size", type=positive_int, default=50257, metavar="N", help="the most tokens")
    train.add_argument(
        "--special-tokens", nargs="+", default=[END_OF_TEXT], metavar="TOKEN", help="the first ids, in this order"
    )
    train.add_argument("--add-prefix-space", action="store_true", help="start a text as if a space were before it")
    train.add_argument("--output-dir", required=True, metavar="DIR", help="where tokenizer.json is written")
    train.add_argument("--overwrite", action="store_true", help="replace a tokenizer that is there already")
    return parser


def main(argv=None):
    """Run the command line."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    with exit_on_error(parser.prog):
        directory = Path(arguments.output_dir)
        if (directory / TOKENIZER_FILE).exists() and not arguments.overwrite:
            raise InputError(f"{directory}: holds a tokenizer; give another --output-dir, or --overwrite to replace it")
        splits = arguments.splits or ("train" if has_splits(arguments.dataset) else None)
        documents = read_documents(arguments.dataset, text_options(arguments), splits)
        tokenizer = train_tokenizer(
            documents, arguments.vocab_size, arguments.special_tokens, arguments.add_prefix_space
        )
        if len(tokenizer) < arguments.vocab_size:
            print(f"the text has too few pairs to merge for {arguments.vocab_size:,} tokens")
        lengths = check_tokenizer(tokenizer, documents)
        with files_replaced_in(directory) as temporary:
            tokenizer.save_pretrained(temporary)
            draw_lengths(tokenizer, lengths, temporary / FIGURE_FILE)
        print(f"wrote {directory / TOKENIZER_FILE} and {directory / FIGURE_FILE}")


if __name__ == "__main__":
    main()
