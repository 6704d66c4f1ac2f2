"""What every test process sets before a framework starts."""

import atexit
import gc
import json
import os
import shutil
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["ALGPT2_CACHE"] = tempfile.mkdtemp(prefix="algpt2-cache-")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest
import tensorflow as tf
import torch
from models import pytorch_model, random_weights, tiny_config
from transformers import GPT2Config, GPT2LMHeadModel

import algpt2_tf  # noqa: F401  selects Keras's backend
from algpt2.data.corpus import read_corpus
from algpt2.data.train_tokenizer import train_tokenizer

atexit.register(shutil.rmtree, os.environ["ALGPT2_CACHE"], ignore_errors=True)
# Two logical devices stand for two GPUs; TensorFlow takes them only before it starts.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
torch.set_num_threads(1)


def pytest_collection_finish():
    # Keras collects garbage for every layer that it quantizes; what the frameworks and the tests hold for good is none.
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def release_models():
    yield
    keras.backend.clear_session()


@pytest.fixture(scope="session")
def text_tokenizer():
    """A byte-level BPE tokenizer trained on Python's own documentation."""
    return train_tokenizer(read_corpus("python-docs").train, vocab_size=600)


@pytest.fixture(scope="module")
def gpt2(text_tokenizer, tmp_path_factory):
    """A directory with transformers' own GPT-2 and a tokenizer, and the model."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(
        vocab_size=600, n_positions=32, n_embd=24, n_layer=2, n_head=3, initializer_range=0.3, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(directory)
    text_tokenizer.save_pretrained(directory)
    return directory, model


@pytest.fixture(scope="module")
def shared(text_tokenizer, tmp_path_factory):
    """A directory with a fully shared model of three layers, and its configuration."""
    directory = tmp_path_factory.mktemp("shared")
    config = tiny_config(vocab_size=600, n_positions=32, layer_schedule=[0, 0, 0], eos_token_id=0)
    pytorch_model(config, random_weights(config, "float32")).save_pretrained(directory)
    text_tokenizer.save_pretrained(directory)
    return directory, config


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A directory with a text, a held-out text and a configuration to train with."""
    directory = tmp_path_factory.mktemp("files")
    text = "".join(list(read_corpus("python-docs").train)[:6])
    (directory / "train.txt").write_text(text[:-4000], encoding="utf-8")
    (directory / "valid.txt").write_text(text[-4000:], encoding="utf-8")
    config = {"model_type": "algpt2", "n_positions": 32, "n_embd": 32, "n_head": 2, "n_layer": 2, "embedding_size": 16}
    (directory / "config.json").write_text(json.dumps(config))
    return directory
