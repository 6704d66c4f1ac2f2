"""The training state of a run besides its weights, in the one form that stands between the frameworks."""

import math
from dataclasses import dataclass

from algpt2.checkpoints.formats.lazy_tensor import pieces
from algpt2.checkpoints.weights import check_tensors
from algpt2.training.run_directory import damaged_checkpoint

# The moments of squares, which are never negative.
OF_SQUARES = ("exp_avg_sq", "variance", "row_var", "col_var")


@dataclass(frozen=True)
class TrainingState:
    """What a run needs to go on from a step, besides the weights, the arguments and the random state.

    Args:
        step: int. The steps that were made, from which the data go on.
        iterations: int. The updates that the optimizer and the schedule count, fewer than the steps where fp16 left
            some out.
        moments: dict of str to float32 array. The moments of the optimizer as `moment_shapes` names and shapes them.
        loss_scale: tuple of float and int. With fp16 the factor of the loss, and the updates since it last changed;
            `None` without.
    """

    step: int
    iterations: int
    moments: dict
    loss_scale: tuple | None = None


def check_training_state(state, shapes, directory):
    """Raise unless a training state is that of an optimizer, and one that training comes to.

    Args:
        state: `TrainingState`.
        shapes: dict of str to tuple of int, of the moments, as `moment_shapes` gives them.
        directory: `Path` of the checkpoint, whose name ends in its step.

    Raises:
        InputError: lists all moments that are missing, unexpected, misshapen or not finite; or names what is wrong.
    """
    check_tensors(shapes, state.moments, directory, reference="optimizer")
    for name, moment in state.moments.items():
        if name.endswith(OF_SQUARES) and any((piece < 0).any() for piece in pieces(moment)):
            raise damaged_checkpoint(directory, f"{name} is negative, which no mean of squares is")
    if not directory.name.endswith(f"-{state.step}"):
        raise damaged_checkpoint(directory, f"it holds the training state of step {state.step}")
    if state.iterations < 0:
        raise damaged_checkpoint(directory, f"{state.iterations} updates were made")
    scale, steps = state.loss_scale or (1.0, 0)
    if not (math.isfinite(scale) and scale > 0 and steps >= 0):
        raise damaged_checkpoint(directory, f"the scale of the loss is {scale}, since {steps} updates")


def moment_shapes(optimizer, shapes):
    """The name and shape of every moment, in PyTorch's names and for weights in its (out, in) layout.

    Args:
        optimizer: str, one of `algpt2.training.optimization.OPTIMIZERS`.
        shapes: dict of str to tuple of int, of the canonical weights.

    Returns:
        dict of str to tuple of int. The name of a moment is that of its weight and, after a dot, its own.

    Example:
        >>> moment_shapes("adafactor", {"c_proj.weight": (3, 2)})
        {'c_proj.weight.row_var': (3, 1), 'c_proj.weight.col_var': (1, 2)}
    """
    return {
        f"{name}.{moment}": kept
        for name, shape in shapes.items()
        for moment, kept in _moments_of_weight(optimizer, shape).items()
    }


def _moments_of_weight(optimizer, shape):
    if optimizer == "sgd":
        return {"momentum_buffer": shape}
    if optimizer != "adafactor":
        return {"exp_avg": shape, "exp_avg_sq": shape}
    return {"row_var": (shape[0], 1), "col_var": (1, shape[1])} if len(shape) > 1 else {"variance": shape}
