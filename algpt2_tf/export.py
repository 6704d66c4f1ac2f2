"""Keras models for deployment: a SavedModel for TensorFlow Serving, and a LiteRT file."""

import functools

import keras
import tensorflow as tf
from keras import ops

INPUT_NAMES = ("token_ids", "padding_mask")


def language_model(model):
    """`keras.Model` of the same layers whose outputs are a dict of `logits`, float (batch, length, V), alone.

    Args:
        model: `TFALGPT2LMHeadModel` or `TFALGPT2ForPreTraining`.
    """
    logits = model.output["logits"] if isinstance(model.output, dict) else model.output
    return keras.Model(model.input, {"logits": logits})


def input_signature(batch=None, length=None):
    """The inputs of every exported function: a dict of `token_ids` and `padding_mask`, int32 (batch, length).

    Args:
        batch, length: int; `None` means any.
    """
    return [{name: keras.InputSpec(shape=(batch, length), dtype="int32", name=name) for name in INPUT_NAMES}]


def export_saved_model(model, directory, stop_token_ids=None):
    """Write a SavedModel for any batch and length, which TensorFlow runs without Keras or this project.

    Its signatures take `token_ids` and `padding_mask`, int32 (batch, length), 0 for padding on the right:

    - `serving_default` gives `logits`, float (batch, length, V).
    - `generate` continues prompts up to the length of its inputs, with the sampler and the repetition penalty that the
      model is compiled with, and a cache of keys and values. It gives `token_ids` and `padding_mask`, int32
      (batch, length); the mask ends at the first stop token.

    Args:
        model: `TFALGPT2LMHeadModel`; of a `TFALGPT2ForPreTraining` the language model.
        directory: path.
        stop_token_ids: tuple of int, the tokens that end a sequence; or `None`.

    Raises:
        ValueError: if the model is compiled with a streamer, which is a Python function.

    Example:
        >>> from algpt2_tf import TFALGPT2Backbone, TFALGPT2LMHeadModel
        >>> model = TFALGPT2LMHeadModel(TFALGPT2Backbone(ALGPT2Config.from_preset("algpt2-tiny")))
        >>> model.compile(sampler="greedy")
        >>> export_saved_model(model, "exported/1", stop_token_ids=(0,))
        >>> ids = tf.constant([[1, 2, 3]])
        >>> served = tf.saved_model.load("exported/1").signatures["serving_default"]
        >>> served(token_ids=ids, padding_mask=tf.ones_like(ids))["logits"].shape
        TensorShape([1, 3, 2048])
    """
    if model.streamer is not None:
        raise ValueError("a SavedModel holds no Python function: compile the model without a streamer")

    def generate(inputs):
        outputs = model.generate_step(inputs, stop_token_ids)
        return {"token_ids": outputs["token_ids"], "padding_mask": ops.cast(outputs["padding_mask"], "int32")}

    archive = keras.export.ExportArchive()
    # The archive finds the variables of its functions by itself; tracking the model would write them a second time.
    archive.add_endpoint("serving_default", functools.partial(language_model(model), training=False), input_signature())
    archive.add_endpoint("generate", generate, input_signature())
    archive.write_out(directory, verbose=False)


def export_litert(model, path, quantize=None, length=None):
    """Write a LiteRT file of built-in operations alone, which the LiteRT interpreter runs on any device.

    Its signature takes `token_ids` and `padding_mask`, int32 (batch, length), 0 for padding, and gives `logits`,
    float (batch, length, V).

    Args:
        model: `TFALGPT2LMHeadModel` in float32; of a `TFALGPT2ForPreTraining` the language model.
        path: path that ends in `.tflite`.
        quantize: str. `"int8"` stores matrices of 1024 entries and more in int8, with a scale for each output, and
            quantizes the inputs of their products as they come (dynamic-range quantization); all else stays float32.
        length: int. Fixes the length, and the batch to 1, which accelerators want; `None` leaves both open.

    Example:
        >>> from algpt2_tf import TFALGPT2Backbone, TFALGPT2LMHeadModel
        >>> model = TFALGPT2LMHeadModel(TFALGPT2Backbone(ALGPT2Config.from_preset("algpt2-tiny")))
        >>> export_litert(model, "model.tflite", quantize="int8")
    """
    language_model(model).export(
        path,
        format="litert",
        verbose=False,
        input_signature=input_signature(1 if length else None, length),
        optimizations=[tf.lite.Optimize.DEFAULT] if quantize == "int8" else [],
        target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]},
    )
