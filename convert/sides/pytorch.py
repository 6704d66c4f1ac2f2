"""A checkpoint as PyTorch runs it."""

import torch
import transformers
from transformers.utils import logging

from algpt2.generation.continuation import Sampling
from algpt2_pt import models
from algpt2_pt.evaluation import open_model, token_loss_function
from algpt2_pt.generation import token_generator
from convert.comparison import comparison_padding


class PyTorchSide:
    """A model of transformers.

    Args:
        name: str, as shown.
        model: `transformers.PreTrainedModel` in evaluation mode.
    """

    def __init__(self, name, model):
        self.name, self.model = name, model
        self.token_losses = token_loss_function(model)
        # The classifier of texts tells padding by its id, others by the mask.
        model.config.pad_token_id = comparison_padding(model.config)

    @torch.no_grad()
    def outputs(self, ids, mask):
        """The outputs of every head.

        Args:
            ids, mask: int (batch, length).

        Returns:
            dict of str to numpy array: `logits` (batch, length, V), or of a classifier (batch, classes), and
            `sop_logits` (batch, 2) if there are any.
        """
        outputs = self.model(torch.tensor(ids), attention_mask=torch.tensor(mask))
        return {key: outputs[key].numpy() for key in ("logits", "sop_logits") if key in outputs}

    @torch.no_grad()
    def hidden_states(self, ids):
        """list of numpy array (batch, length, H): what enters each depth, for int ids (batch, length)."""
        outputs = self.model(torch.tensor(ids), output_hidden_states=True)
        return [states.numpy() for states in outputs.hidden_states[:-1]]

    def generator(self, stop_token_id):
        """The greedy function that `algpt2.generation.continuation.continue_tokens` takes."""
        return token_generator(self.model, Sampling(), stop_token_id)


def open_algpt2(checkpoint, dtype, rounded_to=None):
    """A checkpoint of any system as ALGPT2's model; the arguments are those of `convert.sides.open_side`."""
    model_class = getattr(models, checkpoint.architecture)
    model = open_model(checkpoint, model_class=model_class, dtype=rounded_to or "auto")
    return PyTorchSide("PyTorch", model.to(getattr(torch, dtype)))


def open_gpt2(checkpoint, dtype):
    """A GPT-2 of transformers as its own model; the arguments are those of `convert.sides.open_side`."""
    logging.disable_progress_bar()
    model_class = getattr(transformers, checkpoint.architecture.removeprefix("AL"))
    model = model_class.from_pretrained(checkpoint.directory, dtype=getattr(torch, dtype))
    return PyTorchSide("transformers' GPT-2", model.eval())
