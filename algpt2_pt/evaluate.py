"""Perplexity of a checkpoint in PyTorch: `python -m algpt2_pt.evaluate DIR`."""

import sys

import torch
from transformers import GenerationConfig
from transformers.utils import logging

from algpt2.checkpoint import GENERATION_FILE, find_checkpoint, read_checkpoint, read_config
from algpt2.commands import run_evaluation
from algpt2.errors import InputError
from algpt2_pt.modeling_algpt2 import ALGPT2LMHeadModel
from algpt2_pt.quantization import quantize_int8


def load_for_inference(checkpoint, model_class=ALGPT2LMHeadModel, **kwargs):
    """The model of a checkpoint, checked; transformers itself only warns of tensors that are missing.

    Args:
        checkpoint: str or path. A directory, or the id of a hub repository.
        model_class: class. `ALGPT2LMHeadModel` or a subclass.
        **kwargs: as in `ALGPT2LMHeadModel.from_pretrained`.

    Returns:
        `model_class`, in evaluation mode.

    Raises:
        algpt2.errors.InputError: if the checkpoint cannot be read.
    """
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    directory = find_checkpoint(checkpoint)
    read_checkpoint(directory)
    try:
        if (directory / GENERATION_FILE).is_file():
            GenerationConfig.from_pretrained(directory)
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{directory / GENERATION_FILE}: {error}; correct it, or delete it") from error
    try:
        return model_class.from_pretrained(directory, **kwargs).eval()
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{directory}: transformers cannot load it ({error})") from error


def open_model(directory, quantize=None):
    """The model of a checkpoint on the GPU if there is one; with `quantize="int8"` on the CPU, with int8 weights."""
    model = load_for_inference(directory, **({"dtype": "float32"} if quantize else {}))
    return quantize_int8(model) if quantize else model.to("cuda" if torch.cuda.is_available() else "cpu")


def token_loss_function(model):
    """A function from ids, int32 (batch, length), to the losses of their successors, float (batch, length - 1).

    Args:
        model: `ALGPT2LMHeadModel`.
    """

    @torch.no_grad()
    def compute(ids):
        was_training = model.training
        model.eval()
        ids = torch.as_tensor(ids, dtype=torch.long, device=model.device)
        logits = model(ids[:, :-1], use_cache=False).logits
        if logits.dtype != torch.float64:
            logits = logits.float()
        model.train(was_training)
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").cpu().numpy()

    return compute


def losses_at_depths(directory, depths, quantize=None):
    """The loss function of a checkpoint at one depth after the other; the weights are loaded once.

    Args:
        directory: path.
        depths: list of int; `None` for the checkpoint's own.
        quantize: as in `open_model`.

    Yields:
        function of `token_loss_function`, good until the next one.
    """
    model = open_model(directory, quantize)
    losses = token_loss_function(model)
    for depth in depths:
        config = read_config(directory, n_layer=depth) if depth else model.config
        model.config.layer_schedule, model.config.n_layer = config.layer_schedule, config.n_layer
        yield losses


def main(argv=None):
    run_evaluation("algpt2_pt", losses_at_depths, argv)


if __name__ == "__main__":
    main()
