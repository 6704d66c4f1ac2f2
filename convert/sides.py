"""A checkpoint as one framework runs it: the two sides of a comparison, behind one interface."""

import keras
import numpy as np
import torch
from keras_hub.models import GPT2CausalLM
from transformers import GPT2LMHeadModel
from transformers.utils import logging

from algpt2.checkpoint import open_checkpoint
from algpt2.dialects import gpt2
from algpt2.errors import InputError
from algpt2.generation import Sampling
from algpt2.weights import cast_weights
from algpt2_pt import ALGPT2ForPreTraining, ALGPT2LMHeadModel
from algpt2_pt.evaluate import load_for_inference
from algpt2_pt.evaluate import token_loss_function as pt_token_loss_function
from algpt2_pt.generate import token_generator as pt_token_generator
from algpt2_tf import TFALGPT2ForPreTraining, TFALGPT2LMHeadModel
from algpt2_tf import gpt2 as keras_hub_gpt2  # noqa: F401  registers what presets name
from algpt2_tf.evaluate import token_loss_function as tf_token_loss_function
from algpt2_tf.generate import token_generator as tf_token_generator
from algpt2_tf.weights import assign_weights, canonical_weights


class PyTorchSide:
    """A model of transformers.

    Args:
        name: str, as shown.
        model: `transformers.PreTrainedModel` in evaluation mode.
    """

    def __init__(self, name, model):
        self.name, self.model = name, model
        self.token_losses = pt_token_loss_function(model)

    @torch.no_grad()
    def outputs(self, ids, mask):
        """The outputs of every head.

        Args:
            ids, mask: int (batch, length).

        Returns:
            dict of str to numpy array: `logits` (batch, length, V), and `sop_logits` (batch, 2) if there are any.
        """
        outputs = self.model(torch.tensor(ids), attention_mask=torch.tensor(mask))
        return {key: outputs[key].numpy() for key in ("logits", "sop_logits") if key in outputs}

    @torch.no_grad()
    def hidden_states(self, ids):
        """list of numpy array (batch, length, H): what enters each depth, for int ids (batch, length)."""
        outputs = self.model(torch.tensor(ids), output_hidden_states=True)
        return [states.numpy() for states in outputs.hidden_states[:-1]]

    def generator(self, stop_token_id):
        """The greedy function that `algpt2.generation.continue_tokens` takes."""
        return pt_token_generator(self.model, Sampling(), stop_token_id)


class TensorFlowSide:
    """A model of ALGPT2 in Keras; the arguments and methods are those of `PyTorchSide`."""

    def __init__(self, name, model):
        self.name, self.model = name, model
        pretraining = isinstance(model, TFALGPT2ForPreTraining)
        self.token_losses = tf_token_loss_function(model.language_model() if pretraining else model)

    def outputs(self, ids, mask):
        """As `PyTorchSide.outputs`."""
        outputs = self.model({"token_ids": ids, "padding_mask": mask})
        outputs = outputs if isinstance(outputs, dict) else {"logits": outputs}
        return {key: np.asarray(value) for key, value in outputs.items()}

    def hidden_states(self, ids):
        """As `PyTorchSide.hidden_states`."""
        states = keras.Model(self.model.backbone.input, self._hidden_states())
        return [np.asarray(array) for array in states({"token_ids": ids, "padding_mask": np.ones_like(ids)})]

    def _hidden_states(self):
        return self.model.backbone.hidden_states[:-1]

    def generator(self, stop_token_id):
        """As `PyTorchSide.generator`."""
        return tf_token_generator(self.model, Sampling(), stop_token_id)


class KerasHubSide(TensorFlowSide):
    """A GPT-2 of KerasHub."""

    def _hidden_states(self):
        backbone = self.model.backbone
        layers = [backbone.embeddings_dropout, *backbone.transformer_layers[:-1]]
        return [layer.output for layer in layers]

    def generator(self, stop_token_id):
        """As `PyTorchSide.generator`."""
        self.model.preprocessor = None
        self.model.compile(sampler="greedy", jit_compile=False)

        def generate(context, count, emit):
            ids = np.zeros((1, len(context) + count), dtype="int32")
            ids[0, : len(context)] = context
            inputs = {"token_ids": ids, "padding_mask": np.arange(ids.size)[None] < len(context)}
            outputs = self.model.generate(inputs, stop_token_ids=[stop_token_id])
            return outputs["token_ids"][outputs["padding_mask"].astype(bool)][len(context) :].tolist()

        return generate


def open_side(checkpoint, dtype, framework=None, rounded_to=None):
    """A checkpoint as a framework runs it; a plain GPT-2 as its own library does, unless something else is asked for.

    Args:
        checkpoint: `algpt2.checkpoint.Checkpoint`.
        dtype: str, `"float32"` or `"float64"`. That of the computation.
        framework: str, `"pytorch"` or `"tensorflow"`; by default that of the checkpoint's files.
        rounded_to: str, one of `algpt2.formats.tensors.DTYPES`, that the weights are rounded to first.

    Returns:
        `PyTorchSide` or `TensorFlowSide`.

    Raises:
        algpt2.errors.InputError: if it cannot be loaded.
    """
    directory, is_native = checkpoint.directory, framework is None and rounded_to is None
    framework = framework or checkpoint.format.framework
    pretraining = "sop_classifier.weight" in checkpoint.weights
    if is_native and checkpoint.dialect is gpt2.PYTORCH:
        logging.disable_progress_bar()
        model = _loaded(directory, lambda: GPT2LMHeadModel.from_pretrained(directory, dtype=getattr(torch, dtype)))
        return PyTorchSide("transformers' GPT-2", model.eval())
    if is_native and checkpoint.dialect is gpt2.KERAS_HUB:
        return KerasHubSide(
            "KerasHub's GPT-2", _loaded(directory, lambda: GPT2CausalLM.from_preset(str(directory), dtype=dtype))
        )
    if framework == "pytorch":
        model_class = ALGPT2ForPreTraining if pretraining else ALGPT2LMHeadModel
        model = load_for_inference(directory, model_class, dtype=rounded_to or "auto")
        return PyTorchSide("PyTorch", model.to(getattr(torch, dtype)))
    model_class = TFALGPT2ForPreTraining if pretraining else TFALGPT2LMHeadModel
    model = model_class.from_pretrained(directory, dtype=dtype, preprocessor=None)
    if rounded_to:
        assign_weights(model, cast_weights(canonical_weights(model), rounded_to))
    return TensorFlowSide("TensorFlow", model)


def _loaded(directory, load):
    try:
        return load()
    except Exception as error:  # of whatever kind transformers and KerasHub raise
        raise InputError(f"{directory}: its own library cannot load it ({error})") from error


def both_frameworks(directory):
    """The two sides of one directory.

    Args:
        directory: `Path`.

    Returns:
        list of two dicts, arguments of `open_side`. The weights of both frameworks if they are there; otherwise those
        that are, as their own library runs them and as the other framework does.
    """
    checkpoints = [open_checkpoint(directory, framework) for framework in ("tensorflow", "pytorch")]
    if checkpoints[0].path != checkpoints[1].path:
        return [{"checkpoint": checkpoint} for checkpoint in checkpoints]
    other = {"pytorch": "tensorflow", "tensorflow": "pytorch"}[checkpoints[0].format.framework]
    return [{"checkpoint": checkpoints[0]}, {"checkpoint": checkpoints[0], "framework": other}]
