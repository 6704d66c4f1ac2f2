"""Greedy search in which the model at a smaller depth drafts tokens, and at its own depth verifies several at once."""

from algpt2.errors import InputError


def draft_config(checkpoint, depth):
    """The configuration of a model at the depth that drafts.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.
        depth: int, as `--draft-depth`; or `None`.

    Returns:
        `ALGPT2Config`, of the same blocks by the pattern of the schedule; `None` without a depth.

    Raises:
        InputError: if the depth is not smaller than that of the model, or the schedule cannot follow.

    References:
        Self-speculative decoding: LayerSkip (Elhoushi et al., 2024, https://arxiv.org/abs/2404.16710), which exits
        after the first layers; here the pattern says which blocks a smaller depth has, so that it has the last one too.
    """
    if depth is None:
        return None
    if depth >= checkpoint.config.n_layer:
        raise InputError(
            f"--draft-depth {depth}: the model has n_layer {checkpoint.config.n_layer}; give a smaller depth"
        )
    try:
        return checkpoint.at_depth(depth)
    except InputError as error:
        raise InputError(f"--draft-depth {depth}: {error}") from error


def accepted(drafted, likeliest):
    """The tokens that greedy search would have made.

    Args:
        drafted: list of int, the tokens that the draft made.
        likeliest: list of int, one more: the likeliest token at the place of each of them and after the last, if those
            before it are right.

    Returns:
        list of int: the drafted tokens as far as they are the likeliest, and the likeliest one after them.

    Example:
        >>> accepted([5, 8, 2], [5, 8, 3, 9])
        [5, 8, 3]
    """
    agreed = 0
    while agreed < len(drafted) and drafted[agreed] == likeliest[agreed]:
        agreed += 1
    return likeliest[: agreed + 1]
