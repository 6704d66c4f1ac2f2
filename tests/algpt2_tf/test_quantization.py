"""Keras's own quantization and LoRA on models whose blocks are shared and whose embeddings are factorized."""

import contextlib
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.quantizers import gptq_core
from models import DEPTHS, random_weights, relative_difference, tiny_config

from algpt2.data.corpus import read_corpus
from algpt2_tf import TFALGPT2Backbone, TFALGPT2CausalLMPreprocessor, TFALGPT2LMHeadModel, TFALGPT2Tokenizer
from algpt2_tf.cpu_kernels import StreamedWeights, streamed_variables
from algpt2_tf.quantization import calibration_structure, quantize_int8
from algpt2_tf.weights import assign_weights

SAMPLES = 4
INPUTS = {"token_ids": np.arange(30)[None].astype("int32"), "padding_mask": np.ones((1, 30), "int32")}
SHAPES = {
    "depths": {"layer_schedule": [0, 0, 0], **DEPTHS},
    "shared": {"layer_schedule": [0, 0, 0]},
    "sandwich": {"layer_schedule": [0, 1, 1, 2]},
    "cycle": {"layer_schedule": [0, 1, 0, 1]},
    "tied projections": {"layer_schedule": [0, 0], "tie_projections": True},
    "not factorized": {"layer_schedule": [0, 1], "embedding_size": None},
}
# The largest error of a logit, relative to the largest logit: four bits have a sixteenth of the values of eight.
ALLOWED = {"int8": 0.06, "float8": 0.3, "int4": 0.5, "gptq": 0.15, "awq": 0.5}
CASES = [*((shape, "int8") for shape in SHAPES), *(("shared", mode) for mode in ALLOWED if mode != "int8")]


@pytest.fixture
def make(text_tokenizer):
    """A function that makes the same model again, of a shape by its name."""

    def model(shape):
        config = tiny_config(**{
            **{"vocab_size": len(text_tokenizer), "n_embd": 16, "n_head": 2, "embedding_size": 8},
            **SHAPES[shape],
        })  # fmt: skip
        tokenizer = TFALGPT2Tokenizer(text_tokenizer.backend_tokenizer, end_token=text_tokenizer.eos_token)
        preprocessor = TFALGPT2CausalLMPreprocessor(tokenizer, sequence_length=40)
        result = TFALGPT2LMHeadModel(TFALGPT2Backbone(config, dtype="float32"), preprocessor)
        assign_weights(result, random_weights(config, "float32"))
        return result

    return model


def calibration(mode, model):
    """The configuration of a mode that is calibrated; `None` for others."""
    options = {
        "dataset": list(read_corpus("python-docs").train)[:3],
        "tokenizer": model.preprocessor.tokenizer,
        "sequence_length": 40,
        "num_samples": SAMPLES,
        "group_size": 8,
    }
    if mode == "gptq":
        return keras.quantizers.GPTQConfig(weight_bits=8, **options)
    return keras.quantizers.AWQConfig(**options) if mode == "awq" else None


@pytest.mark.parametrize("shape", SHAPES)
def test_calibration_goes_through_the_whole_model_and_all_depths_of_a_block(make, shape, monkeypatch):
    backbone = make(shape).backbone
    structure, calls = calibration_structure(backbone), []
    for block, layer in enumerate(backbone.transformer_layers):
        monkeypatch.setattr(layer.c_attn, "call", count(layer.c_attn.call, block, calls))
    states = tf.constant(INPUTS["token_ids"])
    for layer in (*structure["pre_block_layers"], *structure["sequential_blocks"]):
        states = layer(states)
    assert calls == backbone.config.layer_schedule
    if shape == "not factorized":
        states = backbone.layer_norm(states)
    elif shape == "tied projections":
        states = backbone.project_states(backbone.layer_norm(states))
    assert relative_difference(backbone(INPUTS), states) < 1e-6
    # No block is in two entries of the list, each of which rounds all that it holds.
    held = [id(dense) for entry in structure["sequential_blocks"] for dense in gptq_core.find_layers_in_block(entry)]
    assert len(held) == len(set(held))


def count(call, block, calls):
    def counted(*args, **kwargs):
        calls.append(block)
        return call(*args, **kwargs)

    return counted


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "mode"), CASES)
def test_a_quantized_model_computes_nearly_the_same(make, shape, mode):
    model = make(shape)
    expected = np.asarray(model(INPUTS))
    config = calibration(mode, model)
    model.quantize(mode, **({} if config is None else {"config": config}))
    found = {layer.name: layer.quantization_mode for layer in model._flatten_layers() if layer.quantization_mode}
    products = {"c_attn", "attn_c_proj", "c_fc", "mlp_c_proj"}
    if shape not in ("tied projections", "not factorized"):
        products |= {"project_in", "project_out"}
    assert products <= found.keys() and set(found.values()) == {mode}
    assert 0 < relative_difference(expected, model(INPUTS)) < ALLOWED[mode]


@pytest.mark.parametrize("shape", SHAPES)
def test_matrices_in_8_bits_are_those_rounded_by_numpy_and_nothing_else_is(make, shape):
    model, rounded = make(shape), quantize_int8(make(shape))
    paths = {variable.path for variable in rounded.weights if variable.dtype == "int8"}
    assert {"token_embedding/embeddings", "block_0/c_attn/kernel", "block_0/mlp_c_proj/kernel"} <= paths
    for variable in model.weights:
        if variable.path in paths:
            matrix = np.asarray(variable)
            axis = 0 if variable.path.endswith("kernel") else 1
            # Keras adds 1e-7, which decides where a number is halfway between two levels.
            scale = np.float32(127) / (np.abs(matrix).max(axis, keepdims=True) + np.float32(1e-7))
            variable.assign(np.round(matrix * scale) / scale)
    assert relative_difference(model(INPUTS), rounded(INPUTS)) < 1e-4
    assert relative_difference(model(INPUTS), make(shape)(INPUTS)) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 2], ids=["a text", "two"])
def test_generation_in_8_bits_is_the_same_by_xla_which_reads_the_matrices_as_they_are(make, length):
    model = quantize_int8(make("shared"))
    texts = ["The value of", "A list is"][:length]
    model.compile(sampler="greedy", jit_compile=False)
    expected = model.generate(texts, max_length=30)
    model.compile(sampler="greedy", jit_compile=True)
    assert model.generate(texts, max_length=30) == expected
    inputs = model.preprocessor.generate_preprocess(texts, sequence_length=30)
    graph = tf.function(model.generate_step).get_concrete_function(inputs, None, 8).graph.as_graph_def()
    barrier = re.search(r'op: "XlaOptimizationBarrier".*?DT_INT8', str(graph), re.DOTALL)
    assert bool(barrier) == (length == 1 and not tf.config.list_logical_devices("GPU"))


def test_an_embedding_in_8_bits_that_is_only_looked_up_is_left():
    layer = keras.layers.Embedding(5, 4)
    layer.build()
    layer.quantize("int8")
    assert isinstance(StreamedWeights(streamed_variables(layer)).scope(tf.constant(0)), contextlib.nullcontext)


@pytest.mark.parametrize("targets", [None, ["c_attn", "c_fc", "project_in", "project_out"]], ids=["default", "all"])
def test_lora_weights_are_saved_and_loaded(make, targets, tmp_path):
    model, path = make("shared"), str(tmp_path / "adapter.lora.h5")
    expected = np.asarray(model(INPUTS))
    model.backbone.enable_lora(4, target_layer_names=targets)
    names = {variable.path for variable in model.trainable_variables if "lora" in variable.path}
    assert len(names) == 2 * len(targets or ["c_attn"])
    draw = np.random.default_rng(0)
    for variable in model.trainable_variables:
        if "lora" in variable.path:
            variable.assign(draw.normal(size=variable.shape))
    adapted = np.asarray(model(INPUTS))
    assert relative_difference(expected, adapted) > 0.01
    model.backbone.save_lora_weights(path)
    loaded = make("shared")
    if targets:
        loaded.backbone.enable_lora(4, target_layer_names=targets)
    loaded.backbone.load_lora_weights(path)
    np.testing.assert_array_equal(np.asarray(loaded(INPUTS)), adapted)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "mode"), [*((shape, "int8") for shape in SHAPES), ("shared", "float8")])
def test_a_quantized_model_is_saved_and_loaded(make, shape, mode, tmp_path):
    model = make(shape)
    model.quantize(mode)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(np.asarray(loaded(INPUTS)), np.asarray(model(INPUTS)))


@pytest.mark.slow
def test_a_quantized_model_generates(make, tmp_path):
    model = make("shared")
    model.quantize("int8")
    model.compile(sampler="greedy")
    expected = model.generate("The value of", max_length=12)
    assert expected.startswith("The value of")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.compile(sampler="greedy")
    assert loaded.generate("The value of", max_length=12) == expected
    with pytest.raises(ValueError, match="the model is quantized"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
