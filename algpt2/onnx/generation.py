"""Continuations by ONNX Runtime: of a directory that `convert export --to onnx` wrote, or of any checkpoint."""

import functools

import numpy as np

from algpt2.checkpoints import CONFIG_FILE
from algpt2.errors import InputError, is_command
from algpt2.generation.command import run_generation
from algpt2.generation.sampling import choose
from algpt2.imports.frameworks import import_module
from algpt2.imports.unneeded import use_transformers_without_torch
from algpt2.onnx.exported import ExportedCheckpoint, LightCheckpoint, is_exported, open_either
from algpt2.onnx.session import OnnxLanguageModel


def open_model(checkpoint, quantize=None):
    """The model of a checkpoint, whose graph is written first if it has none.

    Args:
        checkpoint: `ExportedCheckpoint` or `algpt2.checkpoints.checkpoint.Checkpoint`.
        quantize: str, `"int8"` or `"q4"`; `None` means float32.

    Returns:
        `OnnxLanguageModel`.

    Raises:
        InputError: if it cannot be loaded, or does not fit the configuration beside it.
    """
    if isinstance(checkpoint, ExportedCheckpoint):
        model = OnnxLanguageModel(checkpoint.file(quantize))
        if model.vocab_size != checkpoint.config.vocab_size:
            raise InputError(
                f"{model.name}: gives logits of {model.vocab_size} tokens, but {CONFIG_FILE} has vocab_size "
                f"{checkpoint.config.vocab_size}; export the checkpoint again"
            )
        return model
    # Only who writes a graph needs the package onnx.
    graph = import_module("algpt2.onnx.graph").language_model(
        checkpoint.config, checkpoint.read_weights(), quantize or "float32"
    )
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
    # Another process may want PyTorch afterwards.
    if is_command() and not is_exported(arguments.checkpoint):
        use_transformers_without_torch()
    run_generation(arguments, open_generator, functools.partial(open_either, exported=LightCheckpoint))
