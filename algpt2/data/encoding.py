"""What makes the ids of a text, the same everywhere, by any tokenizer; transformers is not imported here."""

import json
import re

from algpt2.errors import InputError, library_errors

TOKENIZER_FILE, TOKENIZER_CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"

END_OF_TEXT = "<|endoftext|>"
# What transformers writes as the length of a tokenizer without one.
UNLIMITED = int(1e30)
# The least number of characters in a piece of a text, and the most in one that has no place to be cut: tokenizers take
# hundreds of bytes of memory for each.
PIECE, LONGEST_PIECE = 1 << 13, 1 << 20
# A model may have some more tokens than its tokenizer, up to a multiple of the first of these or to one of the others:
# matrices of such sizes are fast.
PADDED_SIZES = (128, 256, 512, 1024)


def encode(tokenizer, text):
    """The ids of a text in training, evaluation and generation alike.

    They are those of `tokenizer(text)`, without what the tokenizer puts behind a text: a prompt goes on, and the token
    that ends a document is put there by whoever knows that it ends.

    Args:
        tokenizer: `transformers.PreTrainedTokenizerFast`.
        text: str.

    Returns:
        list of int.

    Raises:
        InputError: if the tokenizer fails.
    """
    return [*start_ids(tokenizer), *encode_batch(tokenizer, [text])[0]]


def encode_batch(tokenizer, texts):
    """The ids of texts, each as `encode` but without `start_ids`: list of list of int."""
    with library_errors("the tokenizer fails on a text; take another one"):
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"] if texts else []


def start_ids(tokenizer):
    """The ids that a tokenizer puts before every text, such as that of its bos_token: list of int."""
    text = "a"
    with library_errors("the tokenizer fails; take another one"):
        ids, own = tokenizer.encode(text), tokenizer.encode(text, add_special_tokens=False)
    places = [place for place in range(len(ids)) if own and ids[place : place + len(own)] == own]
    return ids[: min(places, default=0)]


def require_end_token(tokenizer, source):
    """The tokenizer; an InputError that names its source, a path, if it has no token that ends a text."""
    if tokenizer.eos_token_id is None:
        raise InputError(f"{source}: the tokenizer has no eos_token; name it in {TOKENIZER_CONFIG_FILE}")
    return tokenizer


def vocabulary_size(tokenizer):
    """The tokens that a model needs for a tokenizer: one more than its highest id, int."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def check_vocabulary(tokenizer, config, source):
    """Raise an InputError if a tokenizer is not of the size of a model.

    Args:
        tokenizer: `transformers.PreTrainedTokenizerFast`, or what has its `get_vocab`.
        config: `algpt2.ALGPT2Config`, or what has its `vocab_size`.
        source: path. Names the tokenizer in the error.
    """
    size, known = vocabulary_size(tokenizer), config.vocab_size
    most, *others = (-(-size // multiple) * multiple for multiple in PADDED_SIZES)
    if not (size <= known <= most or known in others):
        only = "only " if known < size else ""
        raise InputError(f"{source}: the tokenizer has {size} tokens, the model {only}{known}; take the model's own")


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
        cut: `re.Pattern` of the places where it may be cut, as of `safe_cut`; `None` leaves it whole. A stretch of a
            million characters without such a place is cut all the same.
        size: int. The characters of a new piece, at least.

    Yields:
        str, never empty.
    """
    rest = ""
    for text in texts:
        searched, start = len(rest), 0
        rest += text
        while cut:
            most = start + LONGEST_PIECE
            place = cut.search(rest, max(start + size, searched), most + 1)
            if place is None and len(rest) <= most:
                break
            end = place.start() if place else most
            yield rest[start:end]
            start = end
        rest = rest[start:]
    if rest:
        yield rest
