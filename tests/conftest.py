"""What every test process sets before a framework starts."""

import atexit
import gc
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
