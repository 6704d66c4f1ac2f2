"""Load and save the byte-level BPE tokenizer; tokenizer.json is its authoritative form."""

import hashlib
import json
import re
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from algpt2.errors import InputError

TOKENIZER_FILE = "tokenizer.json"

END_OF_TEXT = "<|endoftext|>"
# Documents end with END_OF_TEXT whatever other special tokens there are.
ROLES = {"bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>"}
SPECIAL_TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# GPT-2's files: each vocabulary, and the merges that belong to it; the last pair is that of a KerasHub preset.
VOCABULARIES = {
    "vocab.json": "merges.txt",
    "assets/tokenizer/vocabulary.json": "assets/tokenizer/merges.txt",
}
# The least number of characters in a piece of a text.
PIECE = 1 << 13


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
                # GPT-2's tokenizer on the hub leaves its end token to its class.
                tokenizer.add_special_tokens({"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT})
            return tokenizer
        merges = directory / VOCABULARIES[str(path.relative_to(directory))]
        tokenizer = Tokenizer(models.BPE.from_file(str(path), str(merges)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([END_OF_TEXT])
        return fast_tokenizer(tokenizer, END_OF_TEXT)
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


def is_gpt2_tokenizer(tokenizer):
    """Whether a tokenizer splits texts as GPT-2's does, whatever its vocabulary; KerasHub's can do only that.

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
    fast_tokenizer(tokenizer, end_token).save_pretrained(directory)


def fast_tokenizer(tokenizer, end_token, special_tokens=()):
    """A tokenizer as transformers has it, with the roles of its special tokens.

    Args:
        tokenizer: `tokenizers.Tokenizer`.
        end_token: str. The token that ends a document, and that takes the roles that no other has.
        special_tokens: sequence of str. Those that may take the roles of `ROLES`.

    Returns:
        `transformers.PreTrainedTokenizerFast`.
    """
    tokens = {role: token if token in special_tokens else end_token for role, token in ROLES.items()}
    tokens["eos_token"] = end_token
    if "<mask>" in special_tokens:
        tokens["mask_token"] = "<mask>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)
