"""The Keras tokenizer gives the ids of the fast tokenizer, in and out of graph mode."""

import keras
import keras_hub
import numpy as np
import pytest
import tensorflow as tf
from models import save_checkpoint, tiny_config
from tokenizer_directories import BEHIND, DIRECTORIES, TEXTS, tokenizer_state
from transformers import AutoTokenizer

from algpt2.data.corpus import read_corpus
from algpt2.errors import InputError
from algpt2_tf import TFALGPT2Backbone, TFALGPT2CausalLMPreprocessor, TFALGPT2LMHeadModel, TFALGPT2Tokenizer

ODD_TEXTS = [
    "",
    " ",
    "\n\n  \n",
    "<|endoftext|>",
    "a<|endoftext|>b",
    "  two  spaces",
    "tab\tx",
    "naïve ☃ ६ 𝄞",
    "I'm we'll",
]


@pytest.fixture(scope="module")
def lines():
    corpus = read_corpus("python-docs")
    return ODD_TEXTS + [line for text in [*corpus.train, *corpus.validation] for line in text.splitlines(keepends=True)]


@pytest.fixture(scope="module")
def layer(text_tokenizer):
    return TFALGPT2Tokenizer(text_tokenizer.backend_tokenizer)


@pytest.mark.slow
def test_every_line_of_a_text_has_the_same_ids(layer, lines, text_tokenizer):
    expected = text_tokenizer(lines)["input_ids"]
    assert len(lines) > 10_000
    assert [list(row) for row in layer(lines)] == expected

    graph = tf.function(layer.tokenize, input_signature=[tf.TensorSpec([None], tf.string)])
    assert graph(tf.constant(lines)).to_list() == expected
    batched = tf.data.Dataset.from_tensor_slices(lines).batch(1000).map(layer)
    assert [row for batch in batched for row in batch.to_list()] == expected
    one_by_one = tf.data.Dataset.from_tensor_slices(lines[:500]).map(layer)
    assert [row.numpy().tolist() for row in one_by_one] == expected[:500]


@pytest.mark.slow
def test_text_comes_back(layer, lines):
    assert list(layer.detokenize(layer(lines))) == lines
    assert layer.detokenize(layer("one text")) == "one text"


def test_columns_of_texts_are_texts_and_what_is_nested_more_deeply_is_named(layer, text_tokenizer):
    texts = ["The value", "of"]
    expected = text_tokenizer(texts)["input_ids"]
    column = [[text] for text in texts]
    for inputs in (np.array(column), np.array(column, dtype=object), column, tf.constant(column)):
        assert [list(row) for row in layer(inputs)] == expected
    assert next(iter(tf.data.Dataset.from_tensors(column).map(layer))).to_list() == expected
    for inputs in ([texts, texts], np.array([texts]), tf.constant([texts]), [[["a"]]], [5]):
        with pytest.raises(ValueError, match="is to be a string or a list of strings"):
            layer(inputs)
    with pytest.raises(ValueError, match="is to be a string or a list of strings"):
        tf.data.Dataset.from_tensors([texts]).map(layer)


def test_ids_become_texts_in_graphs_too(layer, text_tokenizer):
    rows = text_tokenizer(["The value", "of an object"])["input_ids"]
    ids = np.array([row[:2] for row in rows])
    expected = [text_tokenizer.decode(row) for row in ids]
    assert layer.detokenize(ids) == layer.detokenize(tf.constant(ids)) == expected
    in_graph = tf.data.Dataset.from_tensors(ids).map(layer.detokenize)
    assert [text.decode() for text in next(iter(in_graph)).numpy()] == expected
    each = tf.data.Dataset.from_tensor_slices(ids).map(layer.detokenize)
    assert [text.numpy().decode() for text in each] == expected
    ragged = tf.data.Dataset.from_tensors(tf.ragged.constant(rows)).map(layer.detokenize)
    assert [text.decode() for text in next(iter(ragged)).numpy()] == [text_tokenizer.decode(row) for row in rows]
    token = rows[0][0]
    assert layer.detokenize(token) == layer.detokenize(tf.constant(token)) == text_tokenizer.decode([token])


def test_vocabulary(layer, text_tokenizer):
    assert layer.vocabulary_size() == len(text_tokenizer)
    assert set(layer.get_vocabulary()) == set(text_tokenizer.get_vocab())
    assert layer.token_to_id("<|endoftext|>") == layer.end_token_id == 0
    assert layer.id_to_token(0) == "<|endoftext|>"
    with pytest.raises(ValueError, match="'nonsense token' is not in the vocabulary"):
        layer.token_to_id("nonsense token")
    with pytest.raises(ValueError, match="id 600000 is not in the vocabulary"):
        layer.id_to_token(600_000)
    with pytest.raises(ValueError, match="the tokenizer is empty"):
        TFALGPT2Tokenizer().tokenize("text")


@pytest.mark.parametrize("add_start_token", [False, True])
def test_preprocessor_makes_inputs_targets_and_weights(layer, text_tokenizer, add_start_token):
    preprocessor = TFALGPT2CausalLMPreprocessor(layer, sequence_length=8, add_start_token=add_start_token)
    ids = [0] * add_start_token + text_tokenizer.encode("The value") + [0]
    x, y, weights = preprocessor(["The value"])
    assert np.asarray(x["token_ids"])[0, : len(ids)].tolist() == ids
    assert np.asarray(x["padding_mask"])[0].tolist() == [1] * len(ids) + [0] * (8 - len(ids))
    assert np.asarray(y)[0, : len(ids) - 1].tolist() == ids[1:]
    assert np.asarray(weights)[0].tolist() == [1] * (len(ids) - 1) + [0] * (9 - len(ids))
    generated = preprocessor.generate_preprocess(["The value"], sequence_length=8)
    assert np.asarray(generated["token_ids"])[0, : len(ids) - 1].tolist() == ids[:-1]
    assert np.sum(generated["padding_mask"]) == len(ids) - 1


def test_a_text_that_is_cut_has_no_end(layer, text_tokenizer):
    ids = text_tokenizer.encode("The value of an object is its value.")
    for length in range(len(ids) - 2, len(ids) + 3):
        expected = [*ids, layer.end_token_id][: length + 1]
        preprocessor = TFALGPT2CausalLMPreprocessor(layer, sequence_length=length)
        in_graph = tf.data.Dataset.from_tensors(["The value of an object is its value."]).map(preprocessor)
        for x, y, weights in (preprocessor(["The value of an object is its value."]), next(iter(in_graph))):
            assert np.shape(x["token_ids"]) == np.shape(y) == np.shape(weights) == (1, length)
            mask, weights = np.asarray(x["padding_mask"]) == 1, np.asarray(weights) == 1
            assert np.asarray(x["token_ids"])[mask].tolist() == expected[:length]
            assert np.asarray(y)[weights].tolist() == expected[1:]


@pytest.mark.parametrize("name", DIRECTORIES)
def test_ids_are_those_of_transformers_for_any_tokenizer(name, text_tokenizer, tmp_path):
    DIRECTORIES[name](tmp_path, tokenizer_state(text_tokenizer))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    layer = TFALGPT2Tokenizer.from_directory(tmp_path)
    expected = [theirs(text)["input_ids"] for text in TEXTS]
    # The end of a document comes once, from the preprocessor, and not behind a prompt.
    plain = [ids[: len(ids) - BEHIND.get(name, 0)] for ids in expected]
    assert layer(TEXTS) == plain
    in_graph = tf.data.Dataset.from_tensors(TEXTS).map(layer)
    assert next(iter(in_graph)).to_list() == plain

    preprocessor = TFALGPT2CausalLMPreprocessor(layer, sequence_length=200, add_start_token=name in ("bos", "llama"))
    x, _, _ = preprocessor(TEXTS)
    rows = [
        ids[mask == 1].tolist() for ids, mask in zip(np.array(x["token_ids"]), np.array(x["padding_mask"]), strict=True)
    ]
    assert rows == [[*ids, layer.end_token_id] for ids in plain]
    prompts = [text for text, ids in zip(TEXTS, plain, strict=True) if ids]
    prompt = preprocessor.generate_preprocess(prompts)
    assert [m.sum() for m in np.array(prompt["padding_mask"])] == [len(ids) for ids in plain if ids]

    layer.save_to_directory(tmp_path / "saved")
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert [saved(text)["input_ids"] for text in TEXTS] == expected
    roles = {"eos_token": layer.end_token, "bos_token": layer.start_token, **theirs.special_tokens_map}
    assert {"eos_token": layer.end_token, "bos_token": layer.start_token, **saved.special_tokens_map} == roles


def test_a_tokenizer_survives_keras(text_tokenizer, tmp_path):
    """Its special tokens by their roles, and the length that it says, to transformers and back by every way to save."""
    DIRECTORIES["added tokens in the config"](tmp_path, tokenizer_state(text_tokenizer))
    theirs = AutoTokenizer.from_pretrained(tmp_path, pad_token="<s>")
    theirs.save_pretrained(tmp_path / "pt")
    save_checkpoint(tmp_path / "pt", tiny_config(vocab_size=len(theirs)))
    model = TFALGPT2LMHeadModel.from_pretrained(tmp_path / "pt")
    tokenizer = model.preprocessor.tokenizer
    assert (tokenizer.end_token, tokenizer.start_token, tokenizer.pad_token) == (
        "<|endoftext|>",
        "<|endoftext|>",
        "<s>",
    )
    model.save(tmp_path / "model.keras")
    model.save_to_preset(str(tmp_path / "preset"))
    for number, found in enumerate(
        (
            model,
            keras.models.load_model(tmp_path / "model.keras"),
            TFALGPT2LMHeadModel.from_preset(str(tmp_path / "preset")),
            keras_hub.models.CausalLM.from_preset(str(tmp_path / "preset")),
        )
    ):
        found.save_pretrained(tmp_path / str(number))
        saved = AutoTokenizer.from_pretrained(tmp_path / str(number))
        assert saved.special_tokens_map == theirs.special_tokens_map and saved.model_max_length == 77
        assert [saved(text)["input_ids"] for text in TEXTS] == [theirs(text)["input_ids"] for text in TEXTS]
        assert found.preprocessor.tokenizer(TEXTS) == tokenizer(TEXTS)
    # Presets of earlier versions.
    (tmp_path / "preset" / "assets" / "tokenizer" / "tokenizer_config.json").unlink()
    assert TFALGPT2LMHeadModel.from_preset(str(tmp_path / "preset")).preprocessor.tokenizer(TEXTS) == tokenizer(TEXTS)


@pytest.mark.parametrize(
    ("size", "message"), [(599, "600 tokens, the model only 599"), (700, "600 tokens, the model 700")]
)
def test_a_tokenizer_of_another_size_is_refused(text_tokenizer, tmp_path, size, message):
    config = tiny_config(vocab_size=size, layer_schedule=[0])
    save_checkpoint(tmp_path / "pt", config, tokenizer=text_tokenizer)
    with pytest.raises(InputError, match=message):
        TFALGPT2LMHeadModel.from_pretrained(tmp_path / "pt")
    preprocessor = TFALGPT2CausalLMPreprocessor(TFALGPT2Tokenizer(text_tokenizer), sequence_length=8)
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config), preprocessor)
    model.compile("sgd", loss="auto")
    model.save_to_preset(str(tmp_path / "preset"))
    for use in (
        lambda: model.generate("The value", max_length=8),
        lambda: model.fit(["The value"], batch_size=1),
        lambda: model.evaluate(["The value"], batch_size=1),
        lambda: model.predict(["The value"], batch_size=1),
        lambda: model.save_pretrained(tmp_path / "saved"),
        lambda: TFALGPT2LMHeadModel.from_preset(str(tmp_path / "preset")),
    ):
        with pytest.raises(InputError, match=message):
            use()
    assert not (tmp_path / "saved").exists()


def test_a_padded_vocabulary_is_no_other(text_tokenizer, tmp_path):
    for size in (601, 640, 768, 1024):
        save_checkpoint(tmp_path, tiny_config(vocab_size=size, layer_schedule=[0]), tokenizer=text_tokenizer)
        assert TFALGPT2LMHeadModel.from_pretrained(tmp_path).preprocessor.tokenizer.vocabulary_size() == 600
