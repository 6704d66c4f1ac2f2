"""The Keras model for pretraining: training, saving in every format, and checkpoints with and without its head."""

import json
import logging

import keras
import numpy as np
import pytest
from models import pretraining_weights, random_batch, random_weights, tiny_config

from algpt2.errors import InputError
from algpt2_tf import TFALGPT2Backbone, TFALGPT2ForPreTraining, TFALGPT2LMHeadModel
from algpt2_tf.weights import assign_weights, canonical_weights

CONFIG = tiny_config(layer_schedule=[0, 1, 0])


def pretraining_model(config=CONFIG, dtype="float32"):
    model = TFALGPT2ForPreTraining(TFALGPT2Backbone(config, dtype=dtype))
    assign_weights(model, pretraining_weights(config, dtype))
    return model


@pytest.fixture
def model():
    return pretraining_model()


@pytest.fixture(scope="module")
def batch():
    ids, mask = random_batch(CONFIG)
    return {"token_ids": ids, "padding_mask": mask}


def assert_equal_weights(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_the_order_is_read_from_the_last_token_on_either_side_of_the_padding(model, batch):
    def last_states(inputs):
        return np.asarray(keras.Model(model.backbone.input, model.backbone.hidden_states[-1])(inputs))

    found = np.asarray(model(batch)["sop_logits"])
    head = {name: array for name, array in canonical_weights(model).items() if name.startswith("sop_classifier")}
    for row, length in enumerate(batch["padding_mask"].sum(-1)):
        ids = batch["token_ids"][row : row + 1, :length]
        last = last_states({"token_ids": ids, "padding_mask": np.ones_like(ids)})[0, -1]
        expected = head["sop_classifier.weight"] @ last + head["sop_classifier.bias"]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)
    left = {"token_ids": batch["token_ids"], "padding_mask": np.arange(12) >= np.array([0, 4, 7])[:, None]}
    last = last_states(left)[:, -1]
    expected = last @ head["sop_classifier.weight"].T + head["sop_classifier.bias"]
    np.testing.assert_allclose(model(left)["sop_logits"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_default_loss_is_the_sum_of_both_cross_entropies(model, batch):
    def cross_entropy(logits, labels):
        logits = np.asarray(logits, dtype="float64")
        logits -= logits.max(-1, keepdims=True)
        log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return -np.take_along_axis(log_probabilities, labels[..., None], -1)[..., 0]

    order = np.array([1, 0, 1])
    outputs = model(batch)
    expected = cross_entropy(outputs["logits"], batch["token_ids"]).mean()
    expected += cross_entropy(outputs["sop_logits"], order).mean()
    targets = {"logits": batch["token_ids"], "sop_logits": order}
    results = model.evaluate(batch, targets, verbose=0, return_dict=True)
    np.testing.assert_allclose(results["loss"], expected, rtol=1e-5)
    accuracy = (np.asarray(outputs["sop_logits"]).argmax(-1) == order).mean()
    assert results["sop_logits_sparse_categorical_accuracy"] == pytest.approx(accuracy)


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_fit_learns_the_order(jit_compile):
    keras.utils.set_random_seed(0)
    model = TFALGPT2ForPreTraining(TFALGPT2Backbone(CONFIG))
    model.compile(optimizer=keras.optimizers.Adam(1e-2), jit_compile=jit_compile)
    order = np.arange(16) % 2
    ids = np.where(order[:, None] == 1, [[9, 4, 7, 3]], [[7, 3, 9, 4]])
    data = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
    model.fit(data, {"logits": ids, "sop_logits": order}, batch_size=8, epochs=15, verbose=0)
    np.testing.assert_array_equal(np.asarray(model(data)["sop_logits"]).argmax(-1), order)


@pytest.mark.slow
def test_generation_and_logits_are_those_of_the_language_model(model, batch):
    language_model = TFALGPT2LMHeadModel(TFALGPT2Backbone(CONFIG))
    assign_weights(language_model, random_weights(CONFIG, "float32"))
    np.testing.assert_array_equal(model(batch)["logits"], language_model(batch))
    np.testing.assert_array_equal(model.language_model()(batch), language_model(batch))
    prompt = {"token_ids": batch["token_ids"], "padding_mask": np.arange(12) < np.full((3, 1), 4)}
    continuations = []
    for each in (model, language_model):
        each.compile(sampler="greedy")
        continuations.append(each.generate(dict(prompt), stop_token_ids=None)["token_ids"])
    np.testing.assert_array_equal(*continuations)


@pytest.mark.parametrize("policy", ["float32", "bfloat16"])
def test_keras_files_and_presets_keep_the_head(policy, batch, tmp_path):
    model = TFALGPT2ForPreTraining(TFALGPT2Backbone(CONFIG, dtype=policy))
    model.save(tmp_path / "model.keras")
    model.save_to_preset(str(tmp_path / "preset"))
    for loaded in (
        keras.models.load_model(tmp_path / "model.keras"),
        TFALGPT2ForPreTraining.from_preset(str(tmp_path / "preset"), dtype=policy),
    ):
        assert type(loaded) is TFALGPT2ForPreTraining
        assert_equal_weights(canonical_weights(loaded), canonical_weights(model))
        np.testing.assert_array_equal(loaded(batch)["sop_logits"], model(batch)["sop_logits"])


@pytest.mark.slow
def test_a_quantized_model_keeps_the_head_exact(model, batch, tmp_path):
    model.quantize("int8")
    expected = model(batch)
    model.save(tmp_path / "model.keras")
    found = keras.models.load_model(tmp_path / "model.keras")(batch)
    for name in ("logits", "sop_logits"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


def test_checkpoints_go_between_the_classes(model, tmp_path, caplog):
    model.save_pretrained(tmp_path / "pretraining")
    assert json.loads((tmp_path / "pretraining" / "config.json").read_text())["architectures"] == [
        "ALGPT2ForPreTraining"
    ]
    expected = canonical_weights(model)
    with caplog.at_level(logging.WARNING):
        loaded = TFALGPT2ForPreTraining.from_pretrained(tmp_path / "pretraining")
        language_model = TFALGPT2LMHeadModel.from_pretrained(tmp_path / "pretraining")
    assert "sop_classifier" not in caplog.text
    assert_equal_weights(canonical_weights(loaded), expected)
    of_language_model = {name: array for name, array in expected.items() if not name.startswith("sop_classifier")}
    assert_equal_weights(canonical_weights(language_model), of_language_model)

    language_model.save_pretrained(tmp_path / "language_model")
    with caplog.at_level(logging.WARNING):
        loaded = TFALGPT2ForPreTraining.from_pretrained(tmp_path / "language_model")
    assert caplog.text.count("holds no sentence-order head; sop_classifier starts new") == 1
    found = canonical_weights(loaded)
    assert 0 < found.pop("sop_classifier.weight").std() < 0.03 and not found.pop("sop_classifier.bias").any()
    assert_equal_weights(found, of_language_model)


def test_damaged_files_are_input_errors(model, tmp_path):
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.weights.h5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"model\.weights\.h5: not readable as HDF5"):
        TFALGPT2ForPreTraining.from_pretrained(tmp_path)


@pytest.mark.slow
def test_half_a_head_is_refused():
    weights = pretraining_weights(CONFIG, "float32")
    del weights["sop_classifier.bias"]
    with pytest.raises(InputError, match=r"1 tensor does not fit.* missing: sop_classifier\.bias \(2,\)"):
        assign_weights(pretraining_model(), weights)
