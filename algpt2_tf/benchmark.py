"""A checkpoint as Keras runs it with TensorFlow, in each precision."""

import numpy as np

from algpt2.benchmark.runtimes import LoadedModel
from algpt2_tf import TFALGPT2LMHeadModel
from algpt2_tf.devices import select_device
from algpt2_tf.evaluation import token_loss_function
from algpt2_tf.quantization import quantize_int8

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "int8": "float32"}


def load(checkpoint, precision):
    """As `algpt2.benchmark.runtimes.Runtime.load`."""
    select_device("cpu")
    model = TFALGPT2LMHeadModel.from_checkpoint(checkpoint, preprocessor=None, dtype=DTYPES[precision])
    if precision == "int8":
        quantize_int8(model)
    model.compile(sampler="greedy")

    def generate(prompt, count):
        ids = np.zeros((1, len(prompt) + count), "int32")
        ids[0, : len(prompt)] = prompt
        inputs = {"token_ids": ids, "padding_mask": np.arange(ids.size)[None] < len(prompt)}
        return np.asarray(model.generate(inputs, stop_token_ids=None)["token_ids"])[0, len(prompt) :].tolist()

    return LoadedModel(generate, token_loss_function(model), weight_size(model))


def weight_size(model):
    """int: the bytes of the variables of a model."""
    return sum(variable.numpy().nbytes for variable in model.weights)
