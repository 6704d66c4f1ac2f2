"""A checkpoint as PyTorch evaluates it: its model, and the losses of tokens."""

import contextlib
import sys

import torch
from transformers.utils import logging

from algpt2.configuration import at_depth_of
from algpt2.errors import InputError
from algpt2.evaluation.command import run_evaluation
from algpt2_pt.devices import uses_gpu
from algpt2_pt.models import language_model_class
from algpt2_pt.quantization import quantize_int8


def open_model(checkpoint, quantize=None, model_class=None, **kwargs):
    """The model of a checkpoint, in evaluation mode.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.
        quantize: str. `"int8"` rounds the weights, for a CPU.
        model_class: class. By default a language model without other heads.
        **kwargs: as in `ALGPT2LMHeadModel.from_pretrained`.

    Returns:
        `ALGPT2LMHeadModel`, on a CPU.

    Raises:
        algpt2.errors.InputError: if the checkpoint cannot be read.
    """
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    model_class = model_class or language_model_class(with_sop=False)
    if quantize:
        kwargs["dtype"] = "float32"
    try:
        model = model_class.from_checkpoint(checkpoint, **kwargs).eval()
    except (ValueError, TypeError, AttributeError, OSError, ImportError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{checkpoint.directory}: transformers cannot load it ({error})") from error
    return quantize_int8(model) if quantize else model


def open_on_device(checkpoint, arguments):
    """`open_model`, on the device that the arguments name.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.
        arguments: `argparse.Namespace` with `quantize` and `device`.

    Raises:
        algpt2.errors.InputError: if there is no such device, or the checkpoint cannot be read.
    """
    quantize = arguments.quantize
    if arguments.device == "gpu" and quantize:
        raise InputError(f"--quantize {quantize} computes on a CPU; leave out --device gpu")
    gpu = uses_gpu(arguments) and not quantize
    return open_model(checkpoint, quantize).to("cuda" if gpu else "cpu")


def token_loss_function(model):
    """A function from ids, int32 (batch, length), to the losses of their successors, float (batch, length - 1).

    Args:
        model: `ALGPT2LMHeadModel`.
    """

    @torch.no_grad()
    def compute(ids):
        ids = torch.as_tensor(ids, dtype=torch.long, device=model.device)
        with _evaluating(model):
            logits = model(ids[:, :-1], use_cache=False).logits
        if logits.dtype != torch.float64:
            logits = logits.float()
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").cpu().numpy()

    return compute


def order_function(model):
    """A function from ids, int32 (batch, length), to the sentence orders that a model predicts, int (batch,).

    Args:
        model: `ALGPT2ForPreTraining`.
    """

    @torch.no_grad()
    def compute(ids):
        with _evaluating(model):
            logits = model(torch.as_tensor(ids, dtype=torch.long, device=model.device), use_cache=False).sop_logits
        return logits.argmax(-1).cpu().numpy()

    return compute


def class_logits_function(model):
    """A function from ids and mask, int32 (batch, length), to the logits of the classes, float (batch, classes).

    Args:
        model: `ALGPT2ForSequenceClassification`.
    """

    @torch.no_grad()
    def compute(ids, mask):
        ids, mask = (torch.as_tensor(array, dtype=torch.long, device=model.device) for array in (ids, mask))
        with _evaluating(model):
            return model(ids, attention_mask=mask, use_cache=False).logits.float().cpu().numpy()

    return compute


@contextlib.contextmanager
def _evaluating(model):
    """A model in evaluation mode, which afterwards is in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def losses_at_depths(model, configs):
    """The loss function of a model at one depth after the other.

    Args:
        model: `ALGPT2LMHeadModel`.
        configs: list of `ALGPT2Config`, those of the model at each depth.

    Yields:
        function of `token_loss_function`, good until the next one.
    """
    losses = token_loss_function(model)
    for config in configs:
        with at_depth_of(model.config, config):
            yield losses


def run(arguments):
    """The program of evaluation: see `algpt2.evaluation.command.run_evaluation`."""

    def losses_of(checkpoint, configs):
        return losses_at_depths(open_on_device(checkpoint, arguments), configs)

    run_evaluation(arguments, losses_of)
