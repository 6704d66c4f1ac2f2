"""A checkpoint as TensorFlow runs it."""

import keras
import numpy as np
from keras_hub.models import GPT2CausalLM

from algpt2.checkpoints.casting import cast_weights
from algpt2.errors import InputError
from algpt2.generation.continuation import Sampling
from algpt2_tf import TFALGPT2ForPreTraining, TFALGPT2LMHeadModel, TFALGPT2TextClassifier
from algpt2_tf.evaluation import token_loss_function
from algpt2_tf.generation import token_generator
from algpt2_tf.weights import assign_weights, canonical_weights

MODELS = {model.architecture: model for model in (TFALGPT2LMHeadModel, TFALGPT2ForPreTraining, TFALGPT2TextClassifier)}


class TensorFlowSide:
    """A model of ALGPT2 in Keras; the arguments and methods are those of `convert.sides.pytorch.PyTorchSide`."""

    def __init__(self, name, model):
        self.name, self.model = name, model
        pretraining = isinstance(model, TFALGPT2ForPreTraining)
        self.token_losses = token_loss_function(model.language_model() if pretraining else model)

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
        return token_generator(self.model, Sampling(), stop_token_id)


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


def open_algpt2(checkpoint, dtype, rounded_to=None):
    """A checkpoint of any system as ALGPT2's model; the arguments are those of `convert.sides.open_side`."""
    if checkpoint.architecture not in MODELS:
        raise InputError(f"{checkpoint.path}: is of {checkpoint.architecture}, which has no counterpart in Keras")
    model = MODELS[checkpoint.architecture].from_checkpoint(checkpoint, dtype, preprocessor=None)
    if rounded_to:
        assign_weights(model, cast_weights(canonical_weights(model), rounded_to))
    return TensorFlowSide("TensorFlow", model)


def open_gpt2(checkpoint, dtype):
    """A GPT-2 of KerasHub as its own model; the arguments are those of `convert.sides.open_side`."""
    return KerasHubSide("KerasHub's GPT-2", GPT2CausalLM.from_preset(str(checkpoint.directory), dtype=dtype))
