"""The Keras models: KerasHub's own checks, and what Keras users do with them."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras_hub import samplers
from keras_hub.src.tests.test_case import TestCase
from models import random_batch, random_config, random_weights, relative_difference, save_checkpoint, tiny_config
from transformers import GPT2Config, GPT2LMHeadModel

from algpt2.errors import InputError
from algpt2_tf import TFALGPT2Backbone, TFALGPT2CausalLMPreprocessor, TFALGPT2LMHeadModel, TFALGPT2Tokenizer
from algpt2_tf.strategies import select_strategy
from algpt2_tf.weights import assign_weights, canonical_weights

CONFIGS = {
    "shared": tiny_config(layer_schedule=[0, 0, 0], attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1),
    "cycle": tiny_config(layer_schedule=[0, 1, 0]),
    "unfactorized": tiny_config(embedding_size=None, layer_schedule=[0, 1]),
    "tied_projections": tiny_config(tie_projections=True, layer_schedule=[0, 0]),
}


class KerasHubTest(TestCase):
    """KerasHub's checks of its own models, as they stand."""

    @pytest.fixture(autouse=True)
    def _use_tokenizer(self, text_tokenizer):
        self.tokenizer = text_tokenizer

    def _preprocessor(self):
        tokenizer = TFALGPT2Tokenizer(self.tokenizer.backend_tokenizer)
        return TFALGPT2CausalLMPreprocessor(tokenizer, sequence_length=8)

    def test_backbone(self):
        ids = np.ones((2, 5), dtype="int32")
        for config in CONFIGS.values():
            self.run_backbone_test(
                cls=TFALGPT2Backbone,
                init_kwargs={"config": config.to_dict()},
                input_data={"token_ids": ids, "padding_mask": ids},
                expected_output_shape=(2, 5, 24),
            )

    def test_task(self):
        for name in ("shared", "unfactorized"):
            config = tiny_config(**{**CONFIGS[name].to_dict(), "vocab_size": len(self.tokenizer)})
            self.run_task_test(
                cls=TFALGPT2LMHeadModel,
                init_kwargs={"preprocessor": self._preprocessor(), "backbone": TFALGPT2Backbone(config)},
                train_data=([" airplane at airport", " airplane at airport"],),
                expected_output_shape=(2, 8, len(self.tokenizer)),
            )

    def test_model_saving(self):
        ids = np.ones((2, 5), dtype="int32")
        inputs = {"token_ids": ids, "padding_mask": ids}
        for config in CONFIGS.values():
            self.run_model_saving_test(
                cls=TFALGPT2Backbone, init_kwargs={"config": config.to_dict()}, input_data=inputs
            )
            self.run_model_saving_test(
                cls=TFALGPT2LMHeadModel,
                init_kwargs={"preprocessor": self._preprocessor(), "backbone": TFALGPT2Backbone(config)},
                input_data=inputs,
            )

    def test_preprocessor(self):
        self.init_kwargs = {"tokenizer": TFALGPT2Tokenizer(self.tokenizer.backend_tokenizer), "sequence_length": 6}
        self.run_preprocessor_test(
            cls=TFALGPT2CausalLMPreprocessor, init_kwargs=self.init_kwargs, input_data=["a value", "of an object"]
        )


@pytest.fixture(params=CONFIGS)
def model(request):
    config = CONFIGS[request.param]
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config))
    assign_weights(model, random_weights(config, "float32"))
    return model


@pytest.fixture
def text_model(text_tokenizer):
    """A model with a tokenizer, for strings."""
    keras.utils.set_random_seed(0)
    config = tiny_config(vocab_size=len(text_tokenizer), initializer_range=0.3)
    tokenizer = TFALGPT2Tokenizer(text_tokenizer.backend_tokenizer)
    return TFALGPT2LMHeadModel(TFALGPT2Backbone(config), TFALGPT2CausalLMPreprocessor(tokenizer, sequence_length=48))


def inputs(config, padded=True):
    ids, mask = random_batch(config, padded=padded)
    return {"token_ids": ids, "padding_mask": mask}


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


@pytest.mark.parametrize(
    ("lengths", "length", "jit_compile"),
    [((5, 8), 20, True), ((5, 40), 48, True), ((34, 40), 72, True), ((5, 40), 48, False)],
)
def test_cached_generation_is_the_plain_model_again_and_again(lengths, length, jit_compile, model):
    model.compile(sampler="greedy", jit_compile=jit_compile)
    given = prompt(model, length, lengths)
    found = model.generate(dict(given), stop_token_ids=None)
    np.testing.assert_array_equal(found["token_ids"], generate_without_cache(model, given))


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


def test_generation_continues_what_transformers_would(text_model, text_tokenizer, tmp_path):
    from algpt2_pt import ALGPT2LMHeadModel

    save_checkpoint(tmp_path, text_model.config, canonical_weights(text_model))
    ids = text_tokenizer("The value of", return_tensors="pt")
    output = ALGPT2LMHeadModel.from_pretrained(tmp_path).generate(**ids, max_length=24, do_sample=False)
    text_model.compile(sampler="greedy")
    found = text_model.generate("The value of", max_length=24)
    assert found == text_tokenizer.decode(output[0], skip_special_tokens=True)


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


def test_padding_that_equals_the_stop_token_does_not_stop(model):
    model.compile(sampler="greedy")
    given = prompt(model)
    free = model.generate(dict(given), stop_token_ids=None)["token_ids"]
    absent = next(token for token in range(97) if token not in free[:, 5:])
    padded = {**given, "token_ids": np.where(given["padding_mask"], given["token_ids"], absent)}
    np.testing.assert_array_equal(model.generate(padded, stop_token_ids=[absent])["token_ids"], free)


def test_fit_on_strings_and_on_ids_learns(text_model):
    text_model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="auto")
    texts = ["The value of an object is its value."] * 8
    losses = text_model.fit(texts, batch_size=4, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    x, y, weights = text_model.preprocessor(texts)
    text_model.preprocessor = None
    losses = text_model.fit(x, y, sample_weight=weights, batch_size=4, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_fit_on_strings_over_two_replicas(text_model):
    preprocessor = text_model.preprocessor
    with select_strategy("mirrored").scope():
        model = TFALGPT2LMHeadModel(TFALGPT2Backbone(text_model.config), preprocessor)
        model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="auto")
    losses = model.fit(["The value of an object is its value."] * 8, batch_size=4, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


def test_a_preset_takes_the_dtype_it_is_loaded_with(text_model, tmp_path):
    text_model.save_to_preset(str(tmp_path))
    loaded = TFALGPT2LMHeadModel.from_preset(str(tmp_path), dtype="bfloat16")
    assert loaded.project_out.variable_dtype == loaded.backbone.variable_dtype == "bfloat16"


def test_preset_round_trip(text_model, tmp_path):
    text_model.compile(sampler="greedy")
    expected = text_model.generate("The value of", max_length=16)
    text_model.save_to_preset(str(tmp_path / "preset"))
    loaded = TFALGPT2LMHeadModel.from_preset(str(tmp_path / "preset"))
    loaded.compile(sampler="greedy")
    assert loaded.generate("The value of", max_length=16) == expected
    for name, array in canonical_weights(text_model).items():
        np.testing.assert_array_equal(canonical_weights(loaded)[name], array)


def test_keras_file_round_trip(text_model, tmp_path):
    text_model.fit(["The value of an object"] * 4, batch_size=2, verbose=0)
    text_model.compile(sampler="greedy")
    expected = text_model.generate("The value of", max_length=16)
    text_model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.compile(sampler="greedy")
    assert loaded.generate("The value of", max_length=16) == expected


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_save_and_from_pretrained(seed, dtype, tmp_path):
    config = random_config(seed)
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config, dtype=dtype))
    model.save_pretrained(tmp_path)
    loaded = TFALGPT2LMHeadModel.from_pretrained(tmp_path, dtype=dtype)
    assert loaded.preprocessor is None
    for name, array in canonical_weights(model).items():
        assert array.dtype.name == dtype
        np.testing.assert_array_equal(canonical_weights(loaded)[name], array)


def test_another_depth_of_a_shared_model(tmp_path):
    config = tiny_config(layer_schedule=[0, 1, 1, 2])
    weights = random_weights(config, "float32")
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config))
    deeper = TFALGPT2LMHeadModel(TFALGPT2Backbone(tiny_config(layer_schedule=[0, 1, 1, 1, 1, 2])))
    for each in (model, deeper):
        assign_weights(each, weights)
    model.save_pretrained(tmp_path)
    loaded = TFALGPT2LMHeadModel.from_pretrained(tmp_path, n_layer=6)
    np.testing.assert_array_equal(loaded(inputs(config)), deeper(inputs(config)))


def test_from_pretrained_builds_the_preprocessor(text_model, text_tokenizer, tmp_path):
    text_model.save_pretrained(tmp_path)
    loaded = TFALGPT2LMHeadModel.from_pretrained(tmp_path)
    assert list(loaded.preprocessor.tokenizer("The value\n of")) == text_tokenizer.encode("The value\n of")
    assert TFALGPT2LMHeadModel.from_pretrained(tmp_path, preprocessor=None).preprocessor is None


def test_training_state_is_neither_saved_nor_needed(text_model, tmp_path):
    text_model.fit(["The value of an object"] * 4, batch_size=2, verbose=0)
    text_model.save_pretrained(tmp_path)
    # A dropout rate of 0 has no random state, another rate has one.
    loaded = TFALGPT2LMHeadModel.from_pretrained(tmp_path, resid_pdrop=0.3)
    assert loaded.config.resid_pdrop == 0.3
    for name, array in canonical_weights(text_model).items():
        np.testing.assert_array_equal(canonical_weights(loaded)[name], array)


def test_a_saved_gpt2_of_transformers_gives_the_same_logits(tmp_path):
    reference = GPT2LMHeadModel(
        GPT2Config(vocab_size=97, n_positions=40, n_embd=24, n_layer=3, n_head=3, eos_token_id=0)
    )
    reference.double().eval().save_pretrained(tmp_path)
    model = TFALGPT2LMHeadModel.from_pretrained(tmp_path, dtype="float64")
    ids = np.arange(30).reshape(2, 15)
    import torch

    expected = reference(torch.tensor(ids)).logits
    assert relative_difference(expected, model({"token_ids": ids, "padding_mask": np.ones_like(ids)})) < 1e-12


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_low_precision_is_close_and_trains(policy):
    config = CONFIGS["cycle"]
    weights = random_weights(config, "float32")
    exact, low = (TFALGPT2LMHeadModel(TFALGPT2Backbone(config, dtype=dtype)) for dtype in ("float32", policy))
    for model in (exact, low):
        assign_weights(model, weights)
    data = inputs(config)
    expected, found = np.asarray(exact(data)), np.asarray(low(data)).astype("float32")
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    low.compile(optimizer=keras.optimizers.SGD(0.1), loss="auto")
    losses = low.fit(data, data["token_ids"], epochs=4, verbose=0).history["loss"]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


def test_int8_quantization_is_close_and_survives_saving(model, tmp_path):
    data = inputs(model.config)
    expected = np.asarray(model(data))
    model.quantize("int8")
    quantized = np.asarray(model(data))
    assert 0 < np.abs(quantized - expected).mean() < 0.1 * np.abs(expected).mean()
    model.save(tmp_path / "model.keras")
    np.testing.assert_allclose(
        np.asarray(keras.models.load_model(tmp_path / "model.keras")(data)), quantized, atol=1e-5
    )
    model.compile(sampler="greedy")
    assert model.generate(prompt(model), stop_token_ids=None)["token_ids"].shape == (2, 20)
    with pytest.raises(ValueError, match="the model is quantized"):
        model.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_int8_quantization_of_a_model_with_a_tokenizer(text_model, tmp_path):
    text_model.compile(sampler="greedy")
    text_model.quantize("int8")
    expected = text_model.generate("The value of", max_length=12)
    text_model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.compile(sampler="greedy")
    assert loaded.generate("The value of", max_length=12) == expected


def test_lora_trains_only_its_own_weights_and_merges(model, tmp_path):
    data = inputs(model.config)
    before = canonical_weights(model)
    model.backbone.enable_lora(rank=2)
    assert len(model.backbone.trainable_weights) == 2 * model.config.n_block + model.config.n_block
    model.compile(optimizer=keras.optimizers.Adam(0.05), loss="auto")
    model.fit(data, data["token_ids"], epochs=2, verbose=0)
    model.save_pretrained(tmp_path)
    loaded = TFALGPT2LMHeadModel.from_pretrained(tmp_path)
    np.testing.assert_allclose(np.asarray(loaded(data)), np.asarray(model(data)), rtol=1e-4, atol=1e-4)
    name = "transformer.h.0.attn.c_attn.weight"
    assert np.abs(canonical_weights(loaded)[name] - before[name]).max() > 1e-3
    np.testing.assert_array_equal(canonical_weights(loaded)["transformer.wte.weight"], before["transformer.wte.weight"])


def test_initialization_has_the_distribution_of_the_pytorch_model():
    import torch

    from algpt2_pt import ALGPT2LMHeadModel

    torch.manual_seed(0)
    keras.utils.set_random_seed(0)
    for tie_projections in (False, True):
        config = tiny_config(vocab_size=400, n_embd=96, embedding_size=48, tie_projections=tie_projections)
        reference = ALGPT2LMHeadModel(config)
        for name, array in canonical_weights(TFALGPT2LMHeadModel(TFALGPT2Backbone(config))).items():
            expected = reference.get_parameter(name).detach().numpy()
            np.testing.assert_allclose(array.std(), expected.std(), rtol=0.06, err_msg=name)
            assert abs(array.mean() - expected.mean()) < 0.1 * expected.std() + 1e-6, name


def damage(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_damaged_or_foreign_weights_are_input_errors(tmp_path):
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(CONFIGS["cycle"]))
    model.save_pretrained(tmp_path)
    TFALGPT2LMHeadModel(TFALGPT2Backbone(CONFIGS["unfactorized"])).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text((tmp_path / "config.json").read_text())
    with pytest.raises(InputError, match=r"model\.weights\.h5: .* do not fit the configuration"):
        TFALGPT2LMHeadModel.from_pretrained(tmp_path / "other")
    damage(tmp_path / "model.weights.h5")
    with pytest.raises(InputError, match=r"model\.weights\.h5: not readable as HDF5"):
        TFALGPT2LMHeadModel.from_pretrained(tmp_path)


def test_an_empty_prompt_is_named(text_model):
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        text_model.generate(["The value", ""], max_length=10)


def test_unknown_arguments_are_named(text_model, tmp_path):
    text_model.save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="n_lyer"):
        TFALGPT2LMHeadModel.from_pretrained(tmp_path, n_lyer=4)


def test_too_long_sequences_are_named(model):
    ids = np.zeros((1, 81), dtype="int32")
    with pytest.raises(ValueError, match="81 tokens, more than n_positions 80"):
        model.backbone({"token_ids": ids, "padding_mask": ids + 1})
    model.compile(sampler="greedy")
    with pytest.raises(ValueError, match="max_length 81 is more than n_positions 80"):
        model.generate({"token_ids": ids, "padding_mask": ids < 0}, stop_token_ids=None)
