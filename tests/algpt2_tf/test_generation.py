"""Generation in Keras, against the plain model and transformers."""

import math
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_hub import samplers
from models import random_weights, save_checkpoint, tiny_config

from algpt2_tf import TFALGPT2Backbone, TFALGPT2LMHeadModel
from algpt2_tf.layers import TFALGPT2Block
from algpt2_tf.weights import assign_weights, canonical_weights


def prompt(model, length=20, lengths=(5, 8)):
    ids = np.random.default_rng(0).integers(model.config.vocab_size, size=(2, length))
    mask = np.arange(length) < np.array(lengths)[:, None]
    return {"token_ids": np.where(mask, ids, 0), "padding_mask": mask}


def generate_without_cache(model, given):
    """Greedy generation by the plain model, one token at a time."""
    ids, fixed = given["token_ids"].copy(), given["padding_mask"]
    for position in range(fixed.sum(axis=1).min(), ids.shape[1]):
        logits = np.asarray(model({"token_ids": ids[:, :position], "padding_mask": np.ones_like(ids[:, :position])}))
        ids[:, position] = np.where(fixed[:, position], ids[:, position], logits[:, -1].argmax(-1))
    return ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lengths", "length", "jit_compile"),
    [((5, 8), 20, True), ((5, 40), 48, True), ((34, 40), 72, True), ((5, 40), 48, False)],
)
def test_cached_generation_is_the_plain_model_again_and_again(lengths, length, jit_compile, model):
    model.compile(sampler="greedy", jit_compile=jit_compile)
    given = prompt(model, length, lengths)
    found = model.generate(dict(given), stop_token_ids=None)
    np.testing.assert_array_equal(found["token_ids"], generate_without_cache(model, given))


@pytest.mark.slow
def test_xla_compiles_generation_if_it_can(model):
    class ByNumpy(samplers.GreedySampler):
        """Greedy search by a function that XLA cannot call."""

        def get_next_token(self, probabilities):
            tokens = tf.numpy_function(lambda values: values.argmax(-1).astype("int32"), [probabilities], tf.int32)
            return tf.ensure_shape(tokens, probabilities.shape[:1])

    given = prompt(model)
    expected = generate_without_cache(model, given)
    for options in ({}, {"jit_compile": False}, {"jit_compile": True}):
        model.compile(sampler=ByNumpy(), **options)
        if options.get("jit_compile"):
            with pytest.raises(tf.errors.InvalidArgumentError):
                model.generate(dict(given), stop_token_ids=None)
            continue
        with warnings.catch_warnings() if options else pytest.warns(UserWarning, match="XLA cannot compile"):
            warnings.simplefilter("error" if options else "always", UserWarning)
            for _ in range(2):
                found = model.generate(dict(given), stop_token_ids=None)
                np.testing.assert_array_equal(found["token_ids"], expected)


def test_cache_has_an_entry_per_depth(model):
    given = prompt(model)
    _, cache = model._build_cache(keras.ops.convert_to_tensor(given["token_ids"]))
    config = model.config
    assert np.shape(cache) == (config.n_layer, 2, 2, config.n_head, 20, config.n_embd // config.n_head)
    assert not np.allclose(cache[0], cache[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [
        "greedy",
        samplers.TopKSampler(k=3, seed=1),
        samplers.TopPSampler(p=0.8, seed=1),
        samplers.RandomSampler(temperature=0.7, seed=1),
        samplers.BeamSampler(num_beams=3),
        samplers.ContrastiveSampler(k=3, alpha=0.2),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_every_sampler_keeps_the_prompt_and_stops(text_model, sampler):
    text_model.compile(sampler=sampler)
    texts = text_model.generate(["The value of", "An object is"], max_length=40)
    assert [text[:12].strip() for text in texts] == ["The value of", "An object is"]


@pytest.mark.slow
def test_generation_continues_what_transformers_would(text_model, text_tokenizer, tmp_path):
    from algpt2_pt import ALGPT2LMHeadModel

    save_checkpoint(tmp_path, text_model.config, canonical_weights(text_model))
    ids = text_tokenizer("The value of", return_tensors="pt")
    output = ALGPT2LMHeadModel.from_pretrained(tmp_path).generate(**ids, max_length=24, do_sample=False)
    text_model.compile(sampler="greedy")
    found = text_model.generate("The value of", max_length=24)
    assert found == text_tokenizer.decode(output[0], skip_special_tokens=True)


@pytest.mark.slow
def test_generation_ends_at_the_stop_token(model):
    model.compile(sampler="greedy")
    given = prompt(model)
    free = model.generate(dict(given), stop_token_ids=None)["token_ids"]
    stop = int(free[0, 10])
    found = model.generate(dict(given), stop_token_ids=[stop])
    for row, length in enumerate((5, 8)):
        stops = [position for position in range(length, 20) if free[row, position] == stop]
        end = stops[0] + 1 if stops else 20
        np.testing.assert_array_equal(found["token_ids"][row, :end], free[row, :end])
        np.testing.assert_array_equal(found["padding_mask"][row], np.arange(20) < end)


@pytest.mark.slow
def test_padding_that_equals_the_stop_token_does_not_stop(model):
    model.compile(sampler="greedy")
    given = prompt(model)
    free = model.generate(dict(given), stop_token_ids=None)["token_ids"]
    absent = next(token for token in range(97) if token not in free[:, 5:])
    padded = {**given, "token_ids": np.where(given["padding_mask"], given["token_ids"], absent)}
    np.testing.assert_array_equal(model.generate(padded, stop_token_ids=[absent])["token_ids"], free)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "mixed_bfloat16", "float32"])
@pytest.mark.parametrize("tie_projections", [False, True])
def test_xla_reads_half_precision_weights_as_they_are(rows, dtype, tie_projections):
    config = tiny_config(tie_projections=tie_projections)
    model, exact = (TFALGPT2LMHeadModel(TFALGPT2Backbone(config, dtype=given)) for given in (dtype, "float32"))
    for each in (model, exact):
        assign_weights(each, random_weights(config, "float32"))
    model.compile(sampler="greedy")
    given = {name: values[:rows] for name, values in prompt(model).items()}
    ids = model.generate(dict(given), stop_token_ids=None)["token_ids"]
    # Rounding may prefer another token, but only one that is about as likely.
    logits = np.asarray(exact({"token_ids": ids, "padding_mask": np.ones_like(ids)}))[:, :-1]
    chosen = np.take_along_axis(logits, ids[:, 1:, None], axis=-1)[..., 0]
    is_new = ~given["padding_mask"][:, 1:]
    assert ((logits.max(-1) - chosen)[is_new] <= 0.03 * np.abs(logits).max()).all()
    graph = tf.function(model.generate_step).get_concrete_function(given, None, 8).graph.as_graph_def()
    is_streamed = rows == 1 and dtype in ("bfloat16", "float16") and not tf.config.list_logical_devices("GPU")
    assert ("XlaOptimizationBarrier" in str(graph)) == is_streamed


@pytest.mark.parametrize("leading", [(2, 2), (4,)], ids=["two dimensions", "one"])
def test_a_cache_with_padding_is_the_plain_block(leading):
    config = tiny_config(n_head=2)
    block = TFALGPT2Block(config)
    draw = np.random.default_rng(0)
    states = draw.normal(size=(2, 6, config.n_embd)).astype("float32")
    mask = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1]])
    empty = np.zeros((*leading, 6, config.n_embd // 2), "float32")
    found, cache = block(states[:, :4], mask, cache=(empty, empty), cache_update_index=0)
    last, _ = block(states[:, 4:], mask, cache=cache, cache_update_index=4)
    np.testing.assert_allclose(np.concatenate([found, last], 1), block(states, mask), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 2])
def test_xla_writes_keys_and_values_in_place(rows, dtype):
    config = tiny_config()
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config, dtype=dtype))
    model.compile(sampler="greedy")
    given = {name: tf.constant(values[:rows]) for name, values in prompt(model).items()}
    step = tf.function(lambda inputs: model.generate_step(inputs, None, 8)["token_ids"], jit_compile=True)
    compiled = step.experimental_get_compiler_ir(given)(stage="optimized_hlo")
    (loop,) = re.findall(r" while\(.*body=(%[^,]*)", compiled)
    body = compiled.split(f"\n{loop} (")[1].split("\n}")[0]
    copied = re.findall(r"\[([\d,]*)\]\S* copy\(", body)
    sizes = [math.prod(int(side) for side in shape.split(",") if side) for shape in copied]
    assert max(sizes, default=0) < rows * given["token_ids"].shape[1] * config.n_embd


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler", [samplers.RandomSampler(seed=1), samplers.BeamSampler(num_beams=3), samplers.ContrastiveSampler(k=3)]
)
def test_one_text_in_half_precision_by_every_kind_of_sampler(sampler):
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(tiny_config(), dtype="bfloat16"))
    model.backbone.enable_lora(2)
    given = {name: values[:1] for name, values in prompt(model).items()}
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        model.compile(sampler=sampler, jit_compile=True)
        found = model.generate(dict(given), stop_token_ids=None)["token_ids"]
    fixed = given["padding_mask"]
    np.testing.assert_array_equal(found[fixed], given["token_ids"][fixed])
    assert (found < model.config.vocab_size).all()


@pytest.mark.slow
@pytest.mark.parametrize("model", ["shared"], indirect=True)
def test_stop_tokens_are_integers_of_any_kind(model):
    model.compile(sampler="greedy", jit_compile=False)
    given = prompt(model)
    whole = model.generate(dict(given), stop_token_ids=None)["token_ids"]
    first, second = int(whole[0, 8]), int(whole[1, 12])
    expected = model.generate(dict(given), stop_token_ids=(first, second))["padding_mask"]
    assert not np.asarray(expected).all()
    both = [first, second]
    for same in (both, np.array(both), np.array(both, "uint8"), tuple(np.int64(both)), tf.constant(both)):
        found = model.generate(dict(given), stop_token_ids=same)
        np.testing.assert_array_equal(found["padding_mask"], expected)
    one = model.generate(dict(given), stop_token_ids=(first,))["padding_mask"]
    for same in (first, np.int32(first), np.array(first), [np.int64(first)]):
        np.testing.assert_array_equal(model.generate(dict(given), stop_token_ids=same)["padding_mask"], one)
    for none in ((), np.array([], int)):
        np.testing.assert_array_equal(model.generate(dict(given), stop_token_ids=none)["token_ids"], whole)
    with pytest.raises(ValueError, match="stop_token_ids are of dtype float64; expected integers"):
        model.generate(dict(given), stop_token_ids=[1.5])
