"""Perplexity of a checkpoint in PyTorch: `python -m algpt2_pt.evaluate DIR`."""

import torch

from algpt2.checkpoint import find_checkpoint, read_checkpoint
from algpt2.commands import evaluate_parser, print_evaluation, validation_text
from algpt2.errors import InputError, exit_on_error
from algpt2.evaluation import evaluate
from algpt2_pt.modeling_algpt2 import ALGPT2LMHeadModel


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
    directory = find_checkpoint(checkpoint)
    read_checkpoint(directory)
    try:
        return model_class.from_pretrained(directory, **kwargs).eval()
    except (ValueError, TypeError, AttributeError, OSError) as error:
        raise InputError(f"{directory}: transformers cannot load it ({error})") from error


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


def main(argv=None):
    parser = evaluate_parser("python -m algpt2_pt.evaluate", "Perplexity of a checkpoint, computed by PyTorch.")
    arguments = parser.parse_args(argv)
    with exit_on_error(parser.prog):
        text, length = validation_text(arguments.checkpoint, arguments.dataset, arguments.length)
        model = load_for_inference(arguments.checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
        losses = token_loss_function(model)
        result = evaluate(losses, text, length, arguments.batch_size, progress=True)
        print_evaluation(result, arguments.json)


if __name__ == "__main__":
    main()
