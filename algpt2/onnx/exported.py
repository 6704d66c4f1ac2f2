"""Directories that `convert export --to onnx` wrote, beside ordinary checkpoints.

transformers is imported only where it is needed: that takes longer than the first token of such a directory.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer

from algpt2.checkpoints import CONFIG_FILE
from algpt2.data.encoding import (
    END_OF_TEXT,
    TOKENIZER_CONFIG_FILE,
    TOKENIZER_FILE,
    UNLIMITED,
    check_vocabulary,
    require_end_token,
)
from algpt2.errors import InputError, library_errors
from algpt2.files.atomic import require_whole
from algpt2.files.reading import TOKENIZER_BYTES, read_json, require_ordinary
from algpt2.onnx import FILES


@dataclass(frozen=True)
class ExportedCheckpoint:
    """A directory with a graph in ONNX, a GPT-2's configuration and a tokenizer.

    Args:
        directory: `Path`.
    """

    directory: Path

    @cached_property
    def config(self):
        """`algpt2.ALGPT2Config`."""
        from algpt2.checkpoints.config_file import read_config

        return read_config(self.directory)

    def require_tokenizer(self):
        """The tokenizer; an InputError if there is none, or it has no token that ends a text."""
        from algpt2.data.tokenizer import require_tokenizer

        return require_tokenizer(self.directory)

    def holds(self, quantize):
        """bool: whether there is the graph of a precision, one of `FILES`."""
        return (self.directory / FILES[quantize]).is_file()

    def file(self, quantize):
        """The graph of a precision; without one that of float32, or what there is."""
        wanted = [quantize] if quantize else list(FILES)
        found = [self.directory / FILES[name] for name in wanted if self.holds(name)]
        if not found:
            names = " or ".join(FILES[name] for name in wanted)
            raise InputError(f"{self.directory}: holds no {names}; export it with --quantize {quantize}")
        return found[0]


class LightCheckpoint(ExportedCheckpoint):
    """What generation needs of such a directory, without transformers."""

    @cached_property
    def config(self):
        """`Sizes`."""
        path = self.directory / CONFIG_FILE
        stored = read_json(path)
        sizes = {name: stored.get(name) for name in Sizes.__annotations__}
        for name, size in sizes.items():
            if type(size) is not int or size < 1:
                raise InputError(f"{path}: {name} is {size!r}; expected a positive integer")
        return Sizes(**sizes)

    def require_tokenizer(self):
        """`LightTokenizer`; an InputError as of `ExportedCheckpoint`, or if it is not of the size of the model."""
        tokenizer = require_end_token(LightTokenizer(self.directory), self.directory)
        check_vocabulary(tokenizer, self.config, self.directory)
        return tokenizer


@dataclass(frozen=True)
class Sizes:
    """The context of a model in tokens, and its vocabulary.

    Args:
        n_positions, vocab_size: int.
    """

    n_positions: int
    vocab_size: int


class LightTokenizer:
    """The tokenizer.json of an exported directory, which says all of texts and tokens, as `save_tokenizer` wrote it.

    It has what generation calls of a `transformers.PreTrainedTokenizerFast`, with the same names and results.

    Args:
        directory: `Path`.

    Raises:
        InputError: if it is missing or damaged.
    """

    def __init__(self, directory):
        path, config_path = directory / TOKENIZER_FILE, directory / TOKENIZER_CONFIG_FILE
        require_ordinary(path, TOKENIZER_BYTES)
        if not path.is_file():
            raise InputError(f"{path}: no such file; export the checkpoint again")
        settings = read_json(config_path, largest=UNLIMITED) if config_path.exists() else {}
        with library_errors(f"{path}: not readable as a tokenizer"):
            self._tokenizer = Tokenizer.from_file(str(path))
        # Those of the file are of the last call of who wrote it.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = bool(settings.get("split_special_tokens"))
        end = named = settings.get("eos_token") or END_OF_TEXT
        if isinstance(named, dict):
            end = named.get("content")
        if not isinstance(end, str):
            raise InputError(f"{config_path}: eos_token is {named!r}; expected a text")
        self.eos_token_id = self._tokenizer.token_to_id(end)

    def get_vocab(self):
        """The ids by their tokens, dict of str to int."""
        return self._tokenizer.get_vocab()

    def encode(self, text, add_special_tokens=True):
        """The ids of a text, list of int."""
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def __call__(self, texts, add_special_tokens=True, verbose=True):
        return {"input_ids": [self.encode(text, add_special_tokens) for text in texts]}

    def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=False):
        """The text of ids, str."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def is_exported(directory):
    """Whether `convert export --to onnx` wrote a directory."""
    return any((Path(directory) / name).is_file() for name in FILES.values())


def open_either(directory, framework="pytorch", exported=ExportedCheckpoint):
    """An `ExportedCheckpoint`, or else an ordinary one.

    Args:
        directory, framework: as of `algpt2.training.recorded_run.open_newest`.
        exported: `ExportedCheckpoint` or `LightCheckpoint`.
    """
    if not is_exported(directory):
        from algpt2.training.recorded_run import open_newest

        return open_newest(directory, framework)
    require_whole(directory)
    return exported(Path(directory))
