"""Tokenizers as transformers' AutoTokenizer reads them: loading and saving them, and what they say of themselves."""

import json
import math
from pathlib import Path

from tokenizers.models import BPE
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast
from transformers.utils import CHAT_TEMPLATE_DIR, CHAT_TEMPLATE_FILE

from algpt2.checkpoints import CONFIG_FILE
from algpt2.data.encoding import (
    END_OF_TEXT,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    UNLIMITED,
    check_vocabulary,
    require_end_token,
)
from algpt2.data.hashing import json_hash
from algpt2.errors import InputError, library_errors
from algpt2.files.reading import TOKENIZER_BYTES, read_json, require_ordinary

# Documents end with END_OF_TEXT whatever other special tokens there are.
ROLES = {"bos_token": "<s>", "pad_token": "<pad>", "unk_token": "<unk>"}
# What models of this kind take; by default, and in some files, there are token types among them.
MODEL_INPUTS = ("input_ids", "attention_mask")
SPECIAL_TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# GPT-2's files: its vocabulary, and the merges that belong to it.
GPT2_FILES = ("vocab.json", "merges.txt")
PRESET_FILE = f"assets/tokenizer/{TOKENIZER_FILE}"
# The forms of a vocabulary. Those of a preset come first: KerasHub describes its tokenizer in a file that is called
# tokenizer.json, too.
VOCABULARIES = (
    (PRESET_FILE,),
    ("assets/tokenizer/vocabulary.json", "assets/tokenizer/merges.txt"),
    (TOKENIZER_FILE,),
    GPT2_FILES,
    ("vocab.txt",),
)
# What transformers reads besides.
CONFIG_FILES = (TOKENIZER_CONFIG_FILE, "special_tokens_map.json", "added_tokens.json")
# All that may belong to a tokenizer in a directory, as wildcards.
TOKENIZER_FILES = (
    *(name for names in VOCABULARIES for name in names),
    *CONFIG_FILES,
    "assets/tokenizer/*",
    CHAT_TEMPLATE_FILE,
    f"{CHAT_TEMPLATE_DIR}/*",
)


def has_tokenizer(directory):
    """Whether a directory holds a tokenizer in one of the forms that `load_tokenizer` reads."""
    return bool(_find_files(Path(directory)))


def _find_files(directory):
    """The files of the vocabulary of a directory: those of one of the forms; empty if there is none."""
    for names in VOCABULARIES:
        paths = [directory / name for name in names]
        if all(path.is_file() for path in paths):
            return paths
    return []


def load_tokenizer(directory):
    """The tokenizer of a directory: what transformers' `AutoTokenizer` reads there, or that of a KerasHub preset.

    GPT-2's vocab.json and merges.txt are enough; without any other file `AutoTokenizer` does not know whose they are.

    Args:
        directory: path.

    Returns:
        `transformers.PreTrainedTokenizerFast`.

    Raises:
        InputError: if it is missing or damaged, or not of the `tokenizers` library.
    """
    directory = Path(directory)
    paths = _find_files(directory)
    if not paths:
        raise InputError(f"{directory / TOKENIZER_FILE}: no such file; give a directory with a {TOKENIZER_FILE}")
    for path in paths:
        require_ordinary(path, TOKENIZER_BYTES)
    for name in (*CONFIG_FILES, CONFIG_FILE):
        if (directory / name).exists():
            read_json(directory / name, largest=UNLIMITED)
    with library_errors(f"{paths[0]}: not readable as a tokenizer"):
        tokenizer = _load(directory, paths)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"{paths[0]}: a {type(tokenizer).__name__}, expected one of the tokenizers library")
    length = tokenizer.model_max_length
    if not isinstance(length, int | float) or math.isnan(length):
        raise InputError(f"{directory / TOKENIZER_CONFIG_FILE}: model_max_length is {length!r}; expected a number")
    templates = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {"": tokenizer.chat_template}
    if not all(isinstance(text, str | None) for text in (*templates, *templates.values())):
        raise InputError(f"{directory / TOKENIZER_CONFIG_FILE}: chat_template is no text, nor texts by their names")
    tokenizer.model_input_names = list(MODEL_INPUTS)
    if tokenizer.eos_token is None and END_OF_TEXT in tokenizer.get_vocab():
        # GPT-2's tokenizer on the hub leaves its end token to its class.
        tokenizer.eos_token = END_OF_TEXT
        tokenizer.bos_token = tokenizer.bos_token or END_OF_TEXT
    return tokenizer


def require_tokenizer(directory):
    """`load_tokenizer`; an InputError, too, if the tokenizer has no token that ends a text."""
    return require_end_token(load_tokenizer(directory), directory)


def _load(directory, paths):
    if paths[0] == directory / PRESET_FILE:
        directory = paths[0].parent
    elif paths[0].parent != directory:
        vocabulary, merges = map(str, paths)
        return GPT2Tokenizer(vocab=vocabulary, merges=merges, pad_token=END_OF_TEXT)
    # Code that a repository brings along is not run.
    options = {"trust_remote_code": False, "local_files_only": True}
    try:
        return AutoTokenizer.from_pretrained(directory, **options)
    except ValueError:
        if paths[0].name != GPT2_FILES[0]:
            raise
        # Nothing there names the class.
        return GPT2Tokenizer.from_pretrained(directory, **options)


def special_token_ids(tokenizer):
    """The special tokens that a tokenizer names and a configuration knows.

    Args:
        tokenizer: `transformers.PreTrainedTokenizerFast`.

    Returns:
        dict of str, of `SPECIAL_TOKEN_FIELDS`, to int.
    """
    ids = {field: getattr(tokenizer, field) for field in SPECIAL_TOKEN_FIELDS}
    return {field: token for field, token in ids.items() if token is not None}


def save_tokenizer(tokenizer, directory):
    """Write a tokenizer so that transformers 4 and 5, KerasHub and tools with readers of their own load it.

    Besides tokenizer.json and tokenizer_config.json these are, of a BPE, vocab.json and merges.txt.

    Args:
        tokenizer: `transformers.PreTrainedTokenizerFast`.
        directory: path.
    """
    directory = Path(directory)
    tokenizer.save_pretrained(directory)
    path = directory / TOKENIZER_CONFIG_FILE
    state = json.loads(path.read_text(encoding="utf-8"))
    if state["tokenizer_class"] == PreTrainedTokenizerFast.__name__:
        # transformers 5 writes a class that other readers do not know.
        state["tokenizer_class"] = "PreTrainedTokenizerFast"
    state["model_input_names"] = list(MODEL_INPUTS)
    for key in ("is_local", "local_files_only"):
        state.pop(key, None)
    # In an order that does not depend on where the tokenizer came from: a resumed run writes what it read.
    path.write_text(json.dumps(state, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    if isinstance(tokenizer.backend_tokenizer.model, BPE):
        tokenizer.backend_tokenizer.model.save(str(directory))


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


def fit_tokenizer(tokenizer, config, source):
    """Have a tokenizer say what length its model takes; raises an InputError if it is not of the model's size.

    Args:
        tokenizer, config, source: as in `check_vocabulary`.
    """
    check_vocabulary(tokenizer, config, source)
    tokenizer.model_max_length = min(tokenizer.model_max_length, config.n_positions)


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
    return json_hash(state)


def fast_tokenizer(tokenizer, end_token=END_OF_TEXT, special_tokens=()):
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
