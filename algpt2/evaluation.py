"""Perplexity, by named protocols that both frameworks share."""

import math
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Args:
        protocol: str. How the text was cut.
        loss: float. The mean negative log-likelihood of a predicted token, in nats.
        tokens: int. The number of predicted tokens.
    """

    protocol: str
    loss: float
    tokens: int

    @property
    def perplexity(self):
        """float: exp(loss)."""
        return perplexity(self.loss)


def perplexity(loss):
    """exp(loss), and infinity where that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


def evaluate(token_losses, text, length, batch_size, progress=False):
    """Evaluate on one token stream cut into blocks: protocol `stream`.

    Every token but the first of its block is predicted from those before it in the block. The last block may be
    shorter.

    Args:
        token_losses: function from int32 ids (batch, length) to float losses (batch, length - 1), in nats.
        text: `algpt2.packing.TokenizedText`.
        length: int. The tokens of a block.
        batch_size: int. The blocks evaluated at once; it does not change the result.
        progress: bool. Whether to show a progress bar, on a terminal.

    Returns:
        `Evaluation`.
    """
    stream = np.asarray(text.tokens, dtype=np.int32)
    whole = stream[: len(stream) // length * length].reshape(-1, length)
    batches = [whole[start : start + batch_size] for start in range(0, len(whole), batch_size)]
    rest = stream[whole.size :]
    if len(rest) > 1:
        batches.append(rest[None])
    total, count = 0.0, 0
    for ids in tqdm(batches, desc="evaluating", unit="batch", leave=False, disable=None if progress else True):
        losses = np.asarray(token_losses(ids), dtype=np.float64)
        total += losses.sum()
        count += losses.size
    return Evaluation("stream", total / count, count)
