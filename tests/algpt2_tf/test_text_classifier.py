"""The Keras classifier of texts, beside PyTorch's of the same weights and transformers' GPT-2: training and saving."""

import json
import logging

import keras
import keras_hub
import numpy as np
import pytest
import torch
from keras_hub.src.tests.test_case import TestCase
from models import CONFIGS, classifier_weights, random_weights, relative_difference, save_checkpoint, tiny_config
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

from algpt2.errors import InputError
from algpt2_pt import ALGPT2ForSequenceClassification
from algpt2_tf import (
    TFALGPT2Backbone,
    TFALGPT2CausalLMPreprocessor,
    TFALGPT2LMHeadModel,
    TFALGPT2TextClassifier,
    TFALGPT2TextClassifierPreprocessor,
    TFALGPT2Tokenizer,
)
from algpt2_tf.weights import assign_weights, canonical_variables, canonical_weights

TEXTS = ["The value of x", "An object of some type", "The name", "A list of values is a list"]
NAMES = {0: "bad", 1: "neutral", 2: "good"}


@pytest.fixture
def preprocessor(text_tokenizer):
    tokenizer = TFALGPT2Tokenizer(text_tokenizer.backend_tokenizer)
    return TFALGPT2TextClassifierPreprocessor(tokenizer, sequence_length=12)


def text_classifier(preprocessor, **overrides):
    config = tiny_config(vocab_size=600, id2label=NAMES, initializer_range=0.3, **overrides)
    return TFALGPT2TextClassifier(TFALGPT2Backbone(config), preprocessor=preprocessor)


class KerasHubTest(TestCase):
    """KerasHub's checks of its own classifiers, as they stand."""

    @pytest.fixture(autouse=True)
    def _use_preprocessor(self, preprocessor):
        self.preprocessor = preprocessor

    @pytest.mark.slow
    def test_task(self):
        for name in ("shared", "unfactorized"):
            config = tiny_config(**{**CONFIGS[name].to_dict(), "vocab_size": 600})
            self.run_task_test(
                cls=TFALGPT2TextClassifier,
                init_kwargs={
                    "preprocessor": self.preprocessor,
                    "backbone": TFALGPT2Backbone(config),
                    "num_classes": 3,
                },
                train_data=(["a value", "the type of an object"], np.array([0, 2])),
                expected_output_shape=(2, 3),
            )

    @pytest.mark.slow
    def test_model_saving(self):
        ids = np.ones((2, 5), dtype="int32")
        for config in CONFIGS.values():
            self.run_model_saving_test(
                cls=TFALGPT2TextClassifier,
                init_kwargs={"backbone": TFALGPT2Backbone(config), "num_classes": 3, "activation": "softmax"},
                input_data={"token_ids": ids, "padding_mask": ids},
            )

    def test_preprocessor(self):
        self.init_kwargs = {"tokenizer": self.preprocessor.tokenizer, "sequence_length": 6}
        self.run_preprocessor_test(
            cls=TFALGPT2TextClassifierPreprocessor,
            init_kwargs=self.init_kwargs,
            input_data=(["a value", "of an object"], [1, 0], [0.5, 1.0]),
        )


def test_the_tokens_of_texts_are_those_of_transformers(preprocessor, text_tokenizer):
    # A text may hold the token that pads.
    texts = [*TEXTS, "one<|endoftext|>", "x" * 40]
    found = preprocessor(texts)
    expected = [text_tokenizer.encode(text)[:12] for text in texts]
    rows = zip(found["token_ids"], found["padding_mask"], strict=True)
    assert [ids[mask == 1].tolist() for ids, mask in rows] == expected
    assert (np.diff(found["padding_mask"], axis=1) <= 0).all()
    one, two = (text_tokenizer.encode(text) for text in ("The name", "is it"))
    pair, labels = preprocessor((["The name"], ["is it"]), y=[1])
    assert labels == [1]
    assert pair["token_ids"][0][pair["padding_mask"][0] == 1].tolist() == [*one, text_tokenizer.eos_token_id, *two]


def test_empty_texts_are_named(preprocessor):
    with pytest.raises(ValueError, match="a text has no tokens"):
        preprocessor(["The value", ""])
    with pytest.raises(Exception, match="a text has no tokens"):
        text_classifier(preprocessor).predict(["The value", ""], verbose=0)


@pytest.mark.parametrize("padding", ["left", "right", "none"])
def test_logits_losses_and_gradients_are_those_of_gpt2(padding, tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=97, n_positions=40, n_embd=24, n_layer=3, n_head=3, num_labels=3, pad_token_id=96)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    gpt2 = GPT2ForSequenceClassification(config).double().eval()
    with torch.no_grad():
        for parameter in gpt2.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    gpt2.save_pretrained(tmp_path)
    model = TFALGPT2TextClassifier.from_pretrained(tmp_path, dtype="float64")
    ids = np.arange(16).reshape(2, 8) * 5 % 95
    if padding != "none":
        ids[0, slice(0, 3) if padding == "left" else slice(5, 8)] = 96
    mask, labels = (ids != 96).astype("int32"), np.array([2, 0])
    expected = gpt2(torch.tensor(ids), attention_mask=torch.tensor(mask), labels=torch.tensor(labels))
    inputs = {"token_ids": ids, "padding_mask": mask}
    assert relative_difference(expected.logits, model(inputs)) < 1e-12
    before = {name: array.copy() for name, array in canonical_weights(model).items()}
    model.compile(optimizer=keras.optimizers.SGD(1.0), run_eagerly=True)
    loss = model.fit(inputs, labels, batch_size=2, verbose=0).history["loss"][0]
    assert relative_difference(expected.loss, np.array(loss)) < 1e-6
    expected.loss.backward()
    for name, gradient in (("score.weight", gpt2.score.weight.grad), ("transformer.ln_f.bias", None)):
        gradient = gpt2.transformer.ln_f.bias.grad if gradient is None else gradient
        assert relative_difference(gradient, before[name] - canonical_weights(model)[name]) < 1e-6


@pytest.mark.slow
def test_fit_on_strings_learns(preprocessor):
    keras.utils.set_random_seed(0)
    model = text_classifier(preprocessor)
    model.compile(optimizer=keras.optimizers.Adam(1e-2))
    model.fit(TEXTS, np.array([2, 0, 1, 2]), batch_size=4, epochs=12, verbose=0)
    assert model.predict(TEXTS, verbose=0).argmax(-1).tolist() == [2, 0, 1, 2]


@pytest.mark.parametrize("overrides", [{}, {"tie_word_embeddings": False}, {"tie_projections": True}])
def test_what_trains_are_the_parameters_of_pytorch_that_have_a_gradient(overrides, preprocessor):
    model = text_classifier(preprocessor, **overrides)
    reference = ALGPT2ForSequenceClassification(model.config)
    reference(torch.tensor([[1, 2, 3]]), labels=torch.tensor([1])).loss.backward()
    expected = {name for name, parameter in reference.named_parameters() if parameter.grad is not None}
    names = {id(variable): name for name, (variable, _) in canonical_variables(model).items()}
    for variables in (model.trainable_variables, model.trainable_weights):
        assert {names[id(variable)] for variable in variables} == expected


@pytest.mark.parametrize("framework", ["pytorch", "tensorflow"])
@pytest.mark.parametrize("tied", [True, False])
def test_checkpoints_of_either_framework(framework, tied, preprocessor, text_tokenizer, tmp_path):
    config = tiny_config(vocab_size=600, id2label=NAMES, pad_token_id=5, tie_word_embeddings=tied)
    if framework == "pytorch":
        torch.manual_seed(0)
        ALGPT2ForSequenceClassification(config).save_pretrained(tmp_path)
        text_tokenizer.save_pretrained(tmp_path)
    else:
        TFALGPT2TextClassifier(TFALGPT2Backbone(config), preprocessor=preprocessor).save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["architectures"] == ["ALGPT2ForSequenceClassification"]
    assert stored["id2label"] == {"0": "bad", "1": "neutral", "2": "good"}
    model = TFALGPT2TextClassifier.from_pretrained(tmp_path)
    assert model.config.id2label == NAMES and isinstance(model.preprocessor, TFALGPT2TextClassifierPreprocessor)
    found = model.predict(TEXTS, verbose=0)
    reference = ALGPT2ForSequenceClassification.from_pretrained(tmp_path).eval()
    for text, logits in zip(TEXTS, found, strict=True):
        expected = reference(torch.tensor([text_tokenizer.encode(text)])).logits[0]
        assert relative_difference(expected, logits) < 1e-5


def test_what_keras_trains_transformers_runs_on_padded_batches(preprocessor, tmp_path):
    model = text_classifier(preprocessor)
    model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    # Keras's file is read by this project alone.
    reference = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
        inputs = {"token_ids": batch["input_ids"].numpy(), "padding_mask": batch["attention_mask"].numpy()}
        assert relative_difference(reference(**batch).logits, model.predict(inputs_without(model, inputs))) < 1e-5


def inputs_without(model, inputs):
    """Ids as they are: the model is told to take no strings."""
    model.preprocessor = None
    return inputs


def test_a_language_model_becomes_a_classifier(text_tokenizer, tmp_path, caplog):
    config = tiny_config(vocab_size=600)
    save_checkpoint(tmp_path, config, random_weights(config, "float32"), text_tokenizer)
    with caplog.at_level(logging.WARNING):
        model = TFALGPT2TextClassifier.from_pretrained(tmp_path, num_classes=4)
    assert caplog.text.count("holds no classifier; score starts new") == 1
    assert model.predict(TEXTS, verbose=0).shape == (4, 4)
    weights = canonical_weights(model)
    assert weights["score.weight"].shape == (4, 24) and 0 < weights["score.weight"].std() < 0.03
    for name, array in random_weights(config, "float32").items():
        np.testing.assert_array_equal(weights[name], array)
    model.save_pretrained(tmp_path / "classifier")
    # Another number of classes starts the head anew, and a language model does without.
    again = TFALGPT2TextClassifier.from_pretrained(tmp_path / "classifier", num_classes=3)
    assert again.config.num_labels == 3 and canonical_weights(again)["score.weight"].shape == (3, 24)
    language_model = TFALGPT2LMHeadModel.from_pretrained(tmp_path / "classifier")
    assert canonical_weights(language_model).keys() == random_weights(config).keys()


@pytest.mark.slow
def test_no_language_model_comes_of_a_classifier_without_its_head(tmp_path):
    config = tiny_config(num_labels=3, tie_word_embeddings=False)
    weights = classifier_weights(config, "float32")
    del weights["lm_head.weight"]
    save_checkpoint(tmp_path, config, weights)
    assert TFALGPT2TextClassifier.from_pretrained(tmp_path).config.num_labels == 3
    with pytest.raises(InputError, match=r"model\.safetensors: holds no lm_head, only a classifier"):
        TFALGPT2LMHeadModel.from_pretrained(tmp_path)


@pytest.mark.slow
def test_presets_and_keras_files_keep_the_head_and_the_names(preprocessor, tmp_path):
    model = text_classifier(preprocessor)
    model.save(tmp_path / "model.keras")
    model.save_to_preset(str(tmp_path / "preset"))
    for loaded in (
        keras.models.load_model(tmp_path / "model.keras"),
        TFALGPT2TextClassifier.from_preset(str(tmp_path / "preset")),
        keras_hub.models.TextClassifier.from_preset(str(tmp_path / "preset")),
    ):
        assert type(loaded) is TFALGPT2TextClassifier and loaded.config.id2label == NAMES
        np.testing.assert_allclose(loaded.predict(TEXTS, verbose=0), model.predict(TEXTS, verbose=0), rtol=1e-5)


def test_the_preset_of_a_language_model_becomes_a_classifier(preprocessor, tmp_path):
    config = tiny_config(vocab_size=600, n_positions=20)
    language_model = TFALGPT2LMHeadModel(
        TFALGPT2Backbone(config), TFALGPT2CausalLMPreprocessor(preprocessor.tokenizer, sequence_length=16)
    )
    assign_weights(language_model, random_weights(config, "float32"))
    language_model.save_to_preset(str(tmp_path))
    model = keras_hub.models.TextClassifier.from_preset(str(tmp_path), num_classes=2)
    assert model.preprocessor.sequence_length == 20 and model.predict(TEXTS, verbose=0).shape == (4, 2)
    name = "transformer.h.0.attn.c_attn.weight"
    np.testing.assert_array_equal(canonical_weights(model)[name], canonical_weights(language_model)[name])


@pytest.mark.slow
def test_weights_that_keras_saves_are_read(preprocessor, tmp_path):
    model = text_classifier(preprocessor)
    model.save_pretrained(tmp_path)
    expected = canonical_weights(model)
    model.save_weights(tmp_path / "model.weights.h5")
    found = canonical_weights(TFALGPT2TextClassifier.from_pretrained(tmp_path))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
