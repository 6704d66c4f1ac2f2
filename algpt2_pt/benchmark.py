"""A checkpoint as PyTorch runs it, in each precision."""

import functools

from torch.ao.nn.quantized import dynamic

from algpt2.benchmark.runtimes import LoadedModel
from algpt2.generation.continuation import Sampling
from algpt2_pt.evaluation import open_model, token_loss_function
from algpt2_pt.generation import token_generator

OPTIONS = {"fp32": {"dtype": "float32"}, "bf16": {"dtype": "bfloat16"}, "int8": {"quantize": "int8"}}


def load(checkpoint, precision):
    """As `algpt2.benchmark.runtimes.Runtime.load`."""
    model = open_model(checkpoint, **OPTIONS[precision])
    generate = token_generator(model, Sampling(), checkpoint.config.vocab_size)
    new_tokens = functools.partial(generate, emit=lambda token: None)
    return LoadedModel(new_tokens, token_loss_function(model), weight_size(model))


def weight_size(model):
    """int: the bytes of the parameters of a model, and of its rounded matrices, which are none."""
    size = sum(parameter.nbytes for parameter in model.parameters())
    return size + sum(layer.weight().nbytes for layer in model.modules() if isinstance(layer, dynamic.Linear))
