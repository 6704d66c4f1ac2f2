"""The Keras models: KerasHub's own checks, and what Keras users do with them."""

import warnings

import keras
import keras_hub
import numpy as np
import pytest
import torch
from keras_hub.src.tests.test_case import TestCase
from models import CONFIGS, random_batch, random_config, random_weights, relative_difference, tiny_config
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from algpt2.errors import InputError
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_tf import (
    ALGPT2CausalLM,
    TFALGPT2Backbone,
    TFALGPT2CausalLMPreprocessor,
    TFALGPT2LMHeadModel,
    TFALGPT2Tokenizer,
)
from algpt2_tf.devices import select_strategy
from algpt2_tf.weights import assign_weights, canonical_weights
from convert import to_pt


class KerasHubTest(TestCase):
    """KerasHub's checks of its own models, as they stand."""

    @pytest.fixture(autouse=True)
    def _use_tokenizer(self, text_tokenizer):
        self.tokenizer = text_tokenizer

    def _preprocessor(self):
        tokenizer = TFALGPT2Tokenizer(self.tokenizer.backend_tokenizer)
        return TFALGPT2CausalLMPreprocessor(tokenizer, sequence_length=8)

    @pytest.mark.slow
    def test_backbone(self):
        ids = np.ones((2, 5), dtype="int32")
        for config in CONFIGS.values():
            self.run_backbone_test(
                cls=TFALGPT2Backbone,
                init_kwargs={"config": config.to_dict()},
                input_data={"token_ids": ids, "padding_mask": ids},
                expected_output_shape=(2, 5, config.embedding_width),
            )

    @pytest.mark.slow
    def test_task(self):
        for name in ("shared", "unfactorized"):
            config = tiny_config(**{**CONFIGS[name].to_dict(), "vocab_size": len(self.tokenizer)})
            self.run_task_test(
                cls=TFALGPT2LMHeadModel,
                init_kwargs={"preprocessor": self._preprocessor(), "backbone": TFALGPT2Backbone(config)},
                train_data=([" airplane at airport", " airplane at airport"],),
                expected_output_shape=(2, 8, len(self.tokenizer)),
            )

    @pytest.mark.slow
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


def inputs(config, padded=True):
    ids, mask = random_batch(config, padded=padded)
    return {"token_ids": ids, "padding_mask": mask}


@pytest.mark.slow
def test_fit_on_strings_and_on_ids_learns(text_model):
    text_model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="auto")
    texts = ["The value of an object is its value."] * 8
    losses = text_model.fit(texts, batch_size=4, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < 0.7 * losses[0]
    x, y, weights = text_model.preprocessor(texts)
    text_model.preprocessor = None
    losses = text_model.fit(x, y, sample_weight=weights, batch_size=4, epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]


@pytest.mark.slow
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
    assert loaded.backbone.project_out.variable_dtype == loaded.backbone.variable_dtype == "bfloat16"


@pytest.mark.slow
def test_preset_round_trip(text_model, tmp_path):
    text_model.compile(sampler="greedy")
    expected = text_model.generate("The value of", max_length=16)
    text_model.save_to_preset(str(tmp_path / "preset"))
    loaded = TFALGPT2LMHeadModel.from_preset(str(tmp_path / "preset"))
    loaded.compile(sampler="greedy")
    assert loaded.generate("The value of", max_length=16) == expected
    for name, array in canonical_weights(text_model).items():
        np.testing.assert_array_equal(canonical_weights(loaded)[name], array)


@pytest.mark.slow
def test_keras_file_round_trip(text_model, tmp_path):
    text_model.fit(["The value of an object"] * 4, batch_size=2, verbose=0)
    text_model.compile(sampler="greedy")
    expected = text_model.generate("The value of", max_length=16)
    text_model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.compile(sampler="greedy")
    assert loaded.generate("The value of", max_length=16) == expected


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_lora_trains_only_its_own_weights_and_merges(model, tmp_path):
    data = inputs(model.config)
    before = canonical_weights(model)
    model.backbone.enable_lora(rank=2)
    blocks = model.backbone.transformer_layers
    # Of two matrices, and of the bias where the block has one.
    assert len(model.backbone.trainable_weights) == sum(2 + block.c_attn.use_bias for block in blocks)
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


def test_tensors_of_pytorch_are_taken(model):
    ids, mask = random_batch(model.config)
    expected = model({"token_ids": ids, "padding_mask": mask})
    found = model({"token_ids": torch.tensor(ids), "padding_mask": torch.tensor(mask)})
    np.testing.assert_array_equal(found, expected)


def test_too_long_sequences_are_named(model):
    ids = np.zeros((1, 81), dtype="int32")
    with pytest.raises(ValueError, match="81 tokens, more than n_positions 80"):
        model.backbone({"token_ids": ids, "padding_mask": ids + 1})
    model.compile(sampler="greedy")
    with pytest.raises(ValueError, match=r"^the sequence has 81 tokens, more than n_positions 80$"):
        model.generate({"token_ids": ids, "padding_mask": ids < 0}, stop_token_ids=None)


@pytest.mark.slow
def test_a_preset_of_keras_hub_is_read_by_every_way_in(text_tokenizer, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=0)
    preprocessor = TFALGPT2CausalLMPreprocessor(TFALGPT2Tokenizer(text_tokenizer), sequence_length=80)
    model = ALGPT2CausalLM(TFALGPT2Backbone(config), preprocessor)
    assert ALGPT2CausalLM is TFALGPT2LMHeadModel
    assign_weights(model, random_weights(config, "float32"))
    model.save_to_preset(str(tmp_path / "preset"))
    model.compile(sampler="greedy")
    expected = model.generate("The value of", max_length=24)
    for cls in (keras_hub.models.CausalLM, TFALGPT2LMHeadModel):
        found = cls.from_preset(str(tmp_path / "preset"))
        found.compile(sampler="greedy")
        assert found.generate("The value of", max_length=24) == expected
    ids = random_batch(config)[0]
    logits = np.asarray(model({"token_ids": ids, "padding_mask": np.ones_like(ids)}))
    model.export_to_transformers(tmp_path / "exported")
    to_pt(tmp_path / "preset", tmp_path / "converted")
    for directory in ("preset", "converted", "exported"):
        pytorch = ALGPT2LMHeadModel.from_pretrained(tmp_path / directory).eval()
        assert relative_difference(logits, pytorch(torch.tensor(ids)).logits.detach().numpy()) < 1e-5
    for directory in ("converted", "exported"):
        assert (
            AutoTokenizer.from_pretrained(tmp_path / directory)("The value").input_ids
            == text_tokenizer("The value").input_ids
        )


def test_score_gives_logits_losses_and_what_is_between():
    config = CONFIGS["cycle"]
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config))
    assign_weights(model, random_weights(config, "float32"))
    ids, mask = random_batch(config)
    logits = np.asarray(model({"token_ids": ids, "padding_mask": mask}))
    assert np.allclose(model.score(ids, mask), logits, rtol=1e-6, atol=1e-6)
    targets = np.roll(ids, -1, axis=1)
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits).flatten(0, 1), torch.tensor(targets).flatten().long(), reduction="none"
    )
    losses = model.score(ids, mask, scoring_mode="loss", target_ids=targets)
    assert np.allclose(np.ravel(losses), expected, rtol=1e-5)
    widths = {}
    model.score(ids, mask, layer_intercept_fn=lambda states, depth: widths.setdefault(depth, states))
    assert {depth: states.shape[-1] for depth, states in widths.items()} == {-1: 10, 0: 24, 1: 24, 2: 24}
    zeroed = model.score(ids, mask, layer_intercept_fn=lambda states, depth: 0 * states if depth == 2 else states)
    assert np.ptp(zeroed, axis=(0, 1)).max() < 1e-6
    with pytest.raises(ValueError, match="target_ids"):
        model.score(ids, scoring_mode="loss")


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler", [keras_hub.samplers.ContrastiveSampler(k=3, alpha=0.3), keras_hub.samplers.BeamSampler(num_beams=2)]
)
def test_samplers_that_want_states_or_several_beams(sampler):
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(CONFIGS["cycle"]))
    model.compile(sampler=sampler, jit_compile=False)
    ids = np.tile(np.arange(12, dtype="int32"), (2, 1))
    inputs = {"token_ids": ids, "padding_mask": np.arange(12)[None].repeat(2, 0) < 5}
    found = model.generate(inputs, stop_token_ids=None)
    assert np.array_equal(found["token_ids"][:, :5], ids[:, :5])


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", [True, False])
def test_fit_on_strings_shuffles_them_and_says_nothing(text_model, shuffle, caplog):
    texts = [f"{letter} value" for letter in "abcdefghijkl"]
    seen = []
    text_model.compile(optimizer="sgd", loss="auto", run_eagerly=True)
    train_step = text_model.train_step
    text_model.train_step = lambda data: seen.extend(data[0]["token_ids"][:, 0].numpy().tolist()) or train_step(data)
    keras.utils.set_random_seed(0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*shuffle.*")
        text_model.fit(texts, batch_size=4, epochs=2, shuffle=shuffle, verbose=0)
        text_model.evaluate(texts, batch_size=4, verbose=0)
    given = [int(text_model.preprocessor.tokenizer(text)[0]) for text in texts]
    epochs = seen[:12], seen[12:]
    assert len(set(given)) == 12 and sorted(epochs[0]) == sorted(epochs[1]) == sorted(given)
    assert (epochs[0] != given and epochs[0] != epochs[1]) if shuffle else epochs == (given, given)
    assert not caplog.records


@pytest.mark.slow
def test_labels_and_weights_go_with_their_rows_when_they_are_shuffled(text_model):
    ids = np.arange(1, 13)[:, None].repeat(4, 1)
    seen = []
    text_model.preprocessor = None
    text_model.compile(optimizer="sgd", loss="auto", run_eagerly=True)
    train_step = text_model.train_step
    text_model.train_step = lambda data: seen.append(data) or train_step(data)
    inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    text_model.fit(inputs, ids + 1, sample_weight=ids + 2.0, batch_size=4, verbose=0)
    order = np.concatenate([x["token_ids"][:, 0] for x, _, _ in seen]).tolist()
    assert sorted(order) == list(range(1, 13)) != order
    for x, y, weights in seen:
        assert np.array_equal(x["token_ids"] + 1, y) and np.array_equal(x["token_ids"] + 2, weights)
