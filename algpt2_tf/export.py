"""Keras models for deployment: a SavedModel for TensorFlow Serving, and a LiteRT file."""

import functools
import tempfile
from pathlib import Path

import keras
import tensorflow as tf
from keras import ops
from keras_hub.models import CausalLM

INPUT_NAMES = ("token_ids", "padding_mask")


def logits_model(model):
    """`keras.Model` of the same layers whose outputs are a dict of `logits` alone.

    Args:
        model: `TFALGPT2LMHeadModel` or `TFALGPT2ForPreTraining`, whose logits are float (batch, length, V); or
            `TFALGPT2TextClassifier`, whose are float (batch, classes).
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

    - `serving_default` gives `logits`, float (batch, length, V), or of a classifier of texts (batch, classes).
    - `generate`, which a classifier has not, continues prompts up to the length of its inputs, with the sampler and the
      repetition penalty that the model is compiled with, and a cache of keys and values. It gives `token_ids` and
      `padding_mask`, int32 (batch, length); the mask ends at the first stop token.

    Args:
        model: `TFALGPT2LMHeadModel`; of a `TFALGPT2ForPreTraining` the language model; or `TFALGPT2TextClassifier`.
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
    generates = isinstance(model, CausalLM)
    if generates and model.streamer is not None:
        raise ValueError("a SavedModel holds no Python function: compile the model without a streamer")

    def generate(inputs):
        outputs = model.generate_step(inputs, stop_token_ids)
        return {"token_ids": outputs["token_ids"], "padding_mask": ops.cast(outputs["padding_mask"], "int32")}

    archive = keras.export.ExportArchive()
    # The archive finds the variables of its functions by itself; tracking the model would write them a second time.
    archive.add_endpoint("serving_default", functools.partial(logits_model(model), training=False), input_signature())
    if generates:
        archive.add_endpoint("generate", generate, input_signature())
    archive.write_out(directory, verbose=False)


def export_litert(model, path, quantize=None, length=None):
    """Write a LiteRT file of built-in operations alone, which the LiteRT interpreter runs on any device.

    Its signatures are:

    - `serving_default` takes `token_ids` and `padding_mask`, int32 (batch, length), 0 for padding, and gives `logits`,
      float (batch, length, V), or of a classifier of texts (batch, classes).
    - `prefill` and `decode`, which a classifier has not, go on from a cache, by the names of LiteRT's generative
      models: they take `tokens`, int32 (1, count), their positions `input_pos`, int32 (count,), and for each depth
      `kv_cache_k_DEPTH` and `kv_cache_v_DEPTH`, float (1, n_head, n_positions, H / n_head), zeros at first. Both give
      the new cache; `decode` takes one token and gives its `logits` too, float (1, 1, V).

    Args:
        model: `TFALGPT2LMHeadModel` in float32; of a `TFALGPT2ForPreTraining` the language model; or
            `TFALGPT2TextClassifier`.
        path: path that ends in `.tflite`.
        quantize: str. `"int8"` stores matrices of 1024 entries and more in int8, with a scale for each output, and
            quantizes the inputs of their products as they come (dynamic-range quantization); all else stays float32.
        length: int. Fixes the length of `serving_default` and of `prefill`, and the batch to 1, which accelerators
            want; `None` leaves both open.

    Example:
        >>> from algpt2_tf import TFALGPT2Backbone, TFALGPT2LMHeadModel
        >>> model = TFALGPT2LMHeadModel(TFALGPT2Backbone(ALGPT2Config.from_preset("algpt2-tiny")))
        >>> export_litert(model, "model.tflite", quantize="int8")
    """

    def decode(inputs):
        return _with_cache(model, inputs)

    def prefill(inputs):
        return {name: value for name, value in _with_cache(model, inputs).items() if name != "logits"}

    archive = keras.export.ExportArchive()
    serving = functools.partial(logits_model(model), training=False)
    archive.add_endpoint("serving_default", serving, input_signature(1 if length else None, length))
    signatures = ["serving_default"]
    if isinstance(model, CausalLM):
        archive.add_endpoint("prefill", prefill, cache_signature(model.config, length))
        archive.add_endpoint("decode", decode, cache_signature(model.config, 1))
        signatures += ["prefill", "decode"]
    with tempfile.TemporaryDirectory() as directory:
        archive.write_out(directory, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(directory, signature_keys=signatures)
        converter.optimizations = [tf.lite.Optimize.DEFAULT] if quantize == "int8" else []
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        Path(path).write_bytes(converter.convert())


def cache_signature(config, count=None):
    """The inputs of what goes on from a cache: see `export_litert`.

    Args:
        config: `algpt2.ALGPT2Config`.
        count: int. The tokens; `None` means any number.
    """
    cache = (1, config.n_head, config.n_positions, config.n_embd // config.n_head)
    names = [f"kv_cache_{kind}_{depth}" for depth in range(config.n_layer) for kind in "kv"]
    specs = {name: keras.InputSpec(shape=cache, dtype="float32", name=name) for name in names}
    specs["tokens"] = keras.InputSpec(shape=(1, count), dtype="int32", name="tokens")
    specs["input_pos"] = keras.InputSpec(shape=(count,), dtype="int32", name="input_pos")
    return [specs]


def _with_cache(model, inputs):
    depths = range(model.config.n_layer)
    cache = tuple((inputs[f"kv_cache_k_{depth}"], inputs[f"kv_cache_v_{depth}"]) for depth in depths)
    logits, _, cache = model.call_with_cache(inputs["tokens"], cache, inputs["input_pos"][0])
    outputs = {f"kv_cache_{kind}_{depth}": cache[depth]["kv".index(kind)] for depth in depths for kind in "kv"}
    return {"logits": logits, **outputs}
