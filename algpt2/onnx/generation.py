"""Continuations by ONNX Runtime: of a directory that `convert export --to onnx` wrote, or of any checkpoint."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from algpt2.checkpoints.checkpoint import read_config
from algpt2.configuration import ALGPT2Config
from algpt2.data.tokenizer import load_tokenizer, require_end_token
from algpt2.errors import InputError
from algpt2.generation.command import run_generation
from algpt2.generation.sampling import choose
from algpt2.onnx import FILES
from algpt2.onnx.session import OnnxLanguageModel
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

    def file(self, quantize):
        """The graph of a precision; without one that of float32, or what there is."""
        wanted = [FILES[quantize]] if quantize else list(FILES.values())
        found = [self.directory / name for name in wanted if (self.directory / name).is_file()]
        if not found:
            raise InputError(f"{self.directory}: holds no {' or '.join(wanted)}; export it with --quantize {quantize}")
        return found[0]


def open_either(directory, framework="pytorch"):
    """An `ExportedCheckpoint`, or else a `Checkpoint`; the arguments are those of `open_newest`."""
    directory = Path(directory)
    if any((directory / name).is_file() for name in FILES.values()):
        return ExportedCheckpoint(directory, read_config(directory))
    return open_newest(directory, framework)


def open_model(checkpoint, quantize=None):
    """The model of a checkpoint, whose graph is written first if it has none.

    Args:
        checkpoint: `ExportedCheckpoint` or `algpt2.checkpoints.checkpoint.Checkpoint`.
        quantize: str, `"int8"` or `"q4"`; `None` means float32.

    Returns:
        `OnnxLanguageModel`.
    """
    if isinstance(checkpoint, ExportedCheckpoint):
        return OnnxLanguageModel(checkpoint.file(quantize))
    # Only who writes a graph needs the package onnx.
    from algpt2.onnx.graph import language_model

    graph = language_model(checkpoint.config, checkpoint.read_weights(), quantize or "float32")
    return OnnxLanguageModel(graph.SerializeToString())


def token_generator(model, sampling, stop_token_id):
    """The function that `algpt2.generation.continuation.continue_tokens` takes; it streams.

    Args:
        model: `OnnxLanguageModel`.
        sampling: `algpt2.generation.continuation.Sampling`.
        stop_token_id: int.
    """
    generator = np.random.default_rng(sampling.seed)

    def generate(context, count, emit):
        decoding, new = model.start([context], len(context) + count), []
        while len(new) < count:
            if new:
                decoding.advance(new[-1:])
            new.append(choose(decoding.logits[0], [*context, *new], sampling, generator))
            emit(new[-1])
            if new[-1] == stop_token_id:
                break
        return new

    return generate


def open_generator(checkpoint, sampling, stop_token_id, stream, arguments):
    """`token_generator` with the model of a checkpoint."""
    if sampling.num_beams > 1:
        raise InputError("--num-beams: ONNX Runtime has no beam search here; leave it out, or take --runtime pytorch")
    if arguments.device == "gpu":
        raise InputError("--device gpu: ONNX Runtime computes on the CPU here; leave it out")
    return token_generator(open_model(checkpoint, arguments.quantize), sampling, stop_token_id)


def run(arguments):
    """The program of generation: see `algpt2.generation.command.run_generation`."""
    run_generation(arguments, open_generator, open_either)
