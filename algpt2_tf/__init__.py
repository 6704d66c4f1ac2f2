"""ALGPT2 in TensorFlow, as models of Keras 3 and KerasHub; importing it selects Keras's TensorFlow backend."""

import os
import sys

# Hides TensorFlow's notes about the machine from the output of commands; errors are still shown.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

if "keras" not in sys.modules:
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend != "tensorflow":
        raise ImportError(
            f"algpt2_tf needs Keras's tensorflow backend, but KERAS_BACKEND is {backend!r}; set it to tensorflow"
        )
    os.environ["KERAS_BACKEND"] = backend

import keras

if keras.config.backend() != "tensorflow":
    raise ImportError(
        f"algpt2_tf needs Keras's tensorflow backend, but keras is already loaded with {keras.config.backend()!r}; set "
        "KERAS_BACKEND=tensorflow, or import algpt2_tf before keras"
    )

from algpt2_tf.backbone import TFALGPT2Backbone
from algpt2_tf.causal_lm import TFALGPT2LMHeadModel
from algpt2_tf.preprocessor import TFALGPT2CausalLMPreprocessor
from algpt2_tf.pretraining import TFALGPT2ForPreTraining
from algpt2_tf.tokenizer import TFALGPT2Tokenizer

__all__ = [
    "TFALGPT2Backbone",
    "TFALGPT2CausalLMPreprocessor",
    "TFALGPT2ForPreTraining",
    "TFALGPT2LMHeadModel",
    "TFALGPT2Tokenizer",
]
