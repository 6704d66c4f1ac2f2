"""ALGPT2 in TensorFlow, as models of Keras 3 and KerasHub; importing it selects Keras's TensorFlow backend."""

import os
import sys
from typing import TYPE_CHECKING

from algpt2.imports.lazy import around_imports, lazy_names, register_with
from algpt2_tf.quiet import without_notes

if TYPE_CHECKING:
    from algpt2_tf.backbone import ALGPT2Backbone, TFALGPT2Backbone
    from algpt2_tf.causal_lm import ALGPT2CausalLM, TFALGPT2LMHeadModel
    from algpt2_tf.preprocessor import (
        ALGPT2CausalLMPreprocessor,
        ALGPT2TextClassifierPreprocessor,
        TFALGPT2CausalLMPreprocessor,
        TFALGPT2TextClassifierPreprocessor,
    )
    from algpt2_tf.pretraining import TFALGPT2ForPreTraining
    from algpt2_tf.text_classifier import ALGPT2TextClassifier, TFALGPT2TextClassifier
    from algpt2_tf.tokenizer import ALGPT2Tokenizer, TFALGPT2Tokenizer

__all__ = [
    "ALGPT2Backbone",
    "ALGPT2CausalLM",
    "ALGPT2CausalLMPreprocessor",
    "ALGPT2TextClassifier",
    "ALGPT2TextClassifierPreprocessor",
    "ALGPT2Tokenizer",
    "TFALGPT2Backbone",
    "TFALGPT2CausalLMPreprocessor",
    "TFALGPT2ForPreTraining",
    "TFALGPT2LMHeadModel",
    "TFALGPT2TextClassifier",
    "TFALGPT2TextClassifierPreprocessor",
    "TFALGPT2Tokenizer",
]

if "keras" in sys.modules:
    backend = sys.modules["keras"].config.backend()
    if backend != "tensorflow":
        raise ImportError(
            f"algpt2_tf needs Keras's tensorflow backend, but keras is already loaded with {backend!r}; set "
            "KERAS_BACKEND=tensorflow, or import algpt2_tf before keras"
        )
else:
    backend = os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend != "tensorflow":
        raise ImportError(
            f"algpt2_tf needs Keras's tensorflow backend, but KERAS_BACKEND is {backend!r}; set it to tensorflow"
        )
    os.environ["KERAS_BACKEND"] = backend

# Errors are still shown. Who sets the level to 0 or 1 sees everything.
if os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2") not in ("0", "1"):
    around_imports(("tensorflow", "keras", "keras_hub"), without_notes)

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "algpt2_tf.backbone": ("TFALGPT2Backbone", "ALGPT2Backbone"),
        "algpt2_tf.causal_lm": ("TFALGPT2LMHeadModel", "ALGPT2CausalLM"),
        "algpt2_tf.preprocessor": (
            *("TFALGPT2CausalLMPreprocessor", "ALGPT2CausalLMPreprocessor"),
            *("TFALGPT2TextClassifierPreprocessor", "ALGPT2TextClassifierPreprocessor"),
        ),
        "algpt2_tf.pretraining": ("TFALGPT2ForPreTraining",),
        "algpt2_tf.text_classifier": ("TFALGPT2TextClassifier", "ALGPT2TextClassifier"),
        "algpt2_tf.tokenizer": ("TFALGPT2Tokenizer", "ALGPT2Tokenizer"),
    },
)

# `keras.saving` and KerasHub's `from_preset` find classes by their registered names.
register_with(("tensorflow", "keras"), __name__, "algpt2_tf.registration", awaited=("keras_hub",))
