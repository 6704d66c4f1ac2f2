"""What the losses of both frameworks share."""

from typing import NamedTuple

# The label of a token that is not counted, as transformers has it.
IGNORED = -100
# How many logits a loss in chunks holds at once: enough for efficient matrix products, in float32 16 MB on a CPU, or as
# much as the weight of the head has, and 1 GB on a GPU.
LOGITS_IN_CHUNK = {"cpu": 1 << 22, "gpu": 1 << 28}


# The part of a loss that is the teacher's, and what the logits of both are divided by, where nothing else is given.
DISTILL_WEIGHT, TEMPERATURE = 0.5, 2.0


class SoftTargets(NamedTuple):
    """What a teacher says of the tokens of a loss in chunks.

    Args:
        states: float (tokens, E), of the teacher, whose E may be another one.
        weight: float (V, E), of its head. The products are computed in the dtype of `states`.
        share: float. The part of the loss that is the teacher's.
        temperature: float. What the logits of both are divided by.
    """

    states: object
    weight: object
    share: float
    temperature: float


def tokens_in_chunk(vocabulary, width, logits=LOGITS_IN_CHUNK["cpu"]):
    """int: how many tokens a chunk of a loss has.

    Args:
        vocabulary, width: int. The shape of the weight of the head.
        logits: int. The most logits to hold at once, raised to the number of entries of the weight if that is larger.

    Example:
        >>> tokens_in_chunk(50257, 128), tokens_in_chunk(50257, 768)
        (128, 768)
    """
    # Every chunk adds to the gradient of the weight, which costs as much as computing a logit for each of its entries.
    return max(width, logits // vocabulary)
