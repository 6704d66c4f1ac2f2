"""Directories that `convert export --to onnx` wrote, beside ordinary checkpoints."""

from dataclasses import dataclass
from pathlib import Path

from algpt2.checkpoints.checkpoint import read_config
from algpt2.configuration import ALGPT2Config
from algpt2.data.tokenizer import load_tokenizer, require_end_token
from algpt2.errors import InputError
from algpt2.onnx import FILES
from algpt2.training.recorded_run import open_newest


@dataclass(frozen=True)
class ExportedCheckpoint:
    """A directory with a graph in ONNX, a GPT-2's configuration and a tokenizer.

    Args:
        directory: `Path`.
        config: `ALGPT2Config`.
    """

    directory: Path
    config: ALGPT2Config

    def require_tokenizer(self):
        """The tokenizer; an InputError if there is none, or it has no token that ends a text."""
        return require_end_token(load_tokenizer(self.directory), self.directory)

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


def open_either(directory, framework="pytorch"):
    """An `ExportedCheckpoint`, or else a `Checkpoint`; the arguments are those of `open_newest`."""
    directory = Path(directory)
    if any((directory / name).is_file() for name in FILES.values()):
        return ExportedCheckpoint(directory, read_config(directory))
    return open_newest(directory, framework)
