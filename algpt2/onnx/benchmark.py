"""A checkpoint as ONNX Runtime runs it, in each precision."""

import functools

from algpt2.benchmark.runtimes import LoadedModel, quantization
from algpt2.generation.continuation import Sampling
from algpt2.onnx.generation import open_model, token_generator


def load(checkpoint, precision):
    """As `algpt2.benchmark.runtimes.Runtime.load`."""
    model = open_model(checkpoint, quantization(precision))
    generate = token_generator(model, Sampling(), checkpoint.config.vocab_size)
    new_tokens = functools.partial(generate, emit=lambda token: None)
    return LoadedModel(new_tokens, model.token_losses, model.size)
