"""Inputs that do not fit a model: both frameworks say the same in one line, which names the field."""

import numpy as np
import pytest
import torch
from models import both_models, tiny_config

CONFIG = tiny_config(n_positions=16)
TENSORFLOW, PYTORCH = both_models(CONFIG, "float32")
TENSORFLOW.preprocessor = None

TOO_LONG = "the sequence has 17 tokens, more than n_positions 16"
TOO_LARGE = "token ids are 0 to 97; vocab_size 97 allows 0 to 96"
NEGATIVE = "token ids are -1 to 0; vocab_size 97 allows 0 to 96"
WRONG_MASK = "the mask is (1, 5); expected (1, 4), an entry for each token"
EMPTY_BATCH = "the input is 0 x 4; expected at least one sequence of at least one token"
EMPTY_PROMPT = "the input is 1 x 0; expected at least one sequence of at least one token"
ALL = {
    "too long": (np.zeros((1, 17), int), np.ones((1, 17), int), TOO_LONG),
    "too large": (np.array([[0, 97, 5]]), np.ones((1, 3), int), TOO_LARGE),
    "negative": (np.array([[0, -1, 0]]), np.ones((1, 3), int), NEGATIVE),
    "mask": (np.zeros((1, 4), int), np.ones((1, 5), int), WRONG_MASK),
    "empty batch": (np.zeros((0, 4), int), np.ones((0, 4), int), EMPTY_BATCH),
    "empty prompt": (np.zeros((1, 0), int), np.ones((1, 0), int), EMPTY_PROMPT),
}


def pytorch_call(ids, mask):
    PYTORCH(torch.tensor(ids), attention_mask=torch.tensor(mask))


def pytorch_generate(ids, mask):
    PYTORCH.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), max_new_tokens=2)


def keras_inputs(ids, mask):
    return {"token_ids": ids.astype("int32"), "padding_mask": mask.astype("int32")}


def keras_call(ids, mask):
    TENSORFLOW(keras_inputs(ids, mask))


def keras_backbone(ids, mask):
    TENSORFLOW.backbone(keras_inputs(ids, mask))


def keras_generate(ids, mask):
    TENSORFLOW.generate(keras_inputs(ids, mask), stop_token_ids=None)


def keras_predict(ids, mask):
    TENSORFLOW.compile(jit_compile=True)
    TENSORFLOW.predict(keras_inputs(ids, mask), verbose=0)


def keras_fit(ids, mask):
    TENSORFLOW.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
    TENSORFLOW.fit(keras_inputs(ids, mask), np.zeros_like(ids), verbose=0)


def keras_train_on_batch(ids, mask):
    TENSORFLOW.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
    TENSORFLOW.train_on_batch(keras_inputs(ids, mask), np.zeros_like(ids))


WAYS = (
    *(pytorch_call, pytorch_generate),
    *(keras_call, keras_backbone, keras_generate, keras_predict, keras_fit, keras_train_on_batch),
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ALL)
def test_wrong_inputs(way, case):
    ids, mask, message = ALL[case]
    with pytest.raises(ValueError) as refused:
        way(ids, mask)
    assert str(refused.value) == message


@pytest.mark.slow
def test_a_dataset_with_wrong_ids_is_not_trained_on():
    import tensorflow as tf

    ids, mask, message = ALL["negative"]
    TENSORFLOW.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
    dataset = tf.data.Dataset.from_tensors((keras_inputs(ids, mask), np.zeros_like(ids)))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message.replace("(", r"\(")):
        TENSORFLOW.fit(dataset, verbose=0)


def test_a_full_cache():
    cache = PYTORCH(torch.zeros((1, 12), dtype=torch.long), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="the sequence has 17 tokens, more than n_positions 16"):
        PYTORCH(torch.zeros((1, 5), dtype=torch.long), past_key_values=cache)
    shape = (1, CONFIG.n_head, 16, CONFIG.n_embd // CONFIG.n_head)
    cache = ((np.zeros(shape, "float32"),) * 2,) * CONFIG.n_layer
    with pytest.raises(ValueError, match="the sequence has 17 tokens, more than n_positions 16"):
        TENSORFLOW.call_with_cache(np.zeros((1, 5), "int32"), cache, 12)


@pytest.mark.parametrize("implementation", ["dynamic", "static"])
def test_generation_past_the_context(implementation):
    prompt = torch.zeros((1, 8), dtype=torch.long)
    options = {"do_sample": False, "eos_token_id": -1, "cache_implementation": implementation}
    assert PYTORCH.generate(prompt, max_new_tokens=8, **options).shape == (1, 16)
    with pytest.raises(ValueError, match=r"^the sequence has 17 tokens, more than n_positions 16$"):
        PYTORCH.generate(prompt, max_new_tokens=12, **options)


def test_padding_on_the_left_takes_no_positions():
    ids = torch.zeros((1, 20), dtype=torch.long)
    mask = (torch.arange(20) >= 8).long()[None]
    tokens = {"do_sample": False, "eos_token_id": -1, "max_new_tokens": 4}
    found = PYTORCH.generate(ids, attention_mask=mask, **tokens)
    assert torch.equal(found[:, 8:], PYTORCH.generate(ids[:, 8:], **tokens))
