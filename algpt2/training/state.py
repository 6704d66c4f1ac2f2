"""The training state of a run besides its weights, in the one form that stands between the frameworks."""

from dataclasses import dataclass


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
