"""Perplexity, by named protocols that both frameworks share."""

import math
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from algpt2.data.corpus import DEFAULT_OPTIONS, Documents, read_documents
from algpt2.data.packing import block_length
from algpt2.data.tokenized_text import tokenize
from algpt2.errors import InputError
from algpt2.evaluation import PROTOCOLS


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation.

    Args:
        protocol: str. How the text was cut, one of `PROTOCOLS`.
        loss: float. The mean negative log-likelihood of a predicted token, in nats.
        tokens: int. The number of predicted tokens.
        length: int. The longest row, in tokens.
        stride: int. The tokens from one row to the next, of protocol `sliding`; otherwise `None`.
        text_tokens: int. The number of tokens of the text, predicted or not.
        words: int. The number of its white-space separated words.
        bytes: int. Its length in UTF-8.
    """

    protocol: str
    loss: float
    tokens: int
    length: int
    stride: int | None
    text_tokens: int
    words: int
    bytes: int

    @property
    def perplexity(self):
        """float: exp(loss)."""
        return perplexity(self.loss)

    @property
    def word_perplexity(self):
        """float: exp(loss * tokens of the text / words), to compare tokenizers; `None` for a text without words.

        The tokens that the protocol does not predict count as if they had the mean loss.
        """
        return perplexity(self.loss * self.text_tokens / self.words) if self.words else None

    @property
    def bits_per_byte(self):
        """float: loss * tokens of the text / (ln 2 * bytes), the mean loss of a byte; `None` for an empty text."""
        return self.loss * self.text_tokens / (math.log(2) * self.bytes) if self.bytes else None

    @property
    def name(self):
        """str: the protocol with what it depends on, to stand beside every perplexity."""
        stride = f", stride {self.stride}" if self.stride else ""
        return f"{self.protocol}, length {self.length}{stride}"


def perplexity(loss):
    """exp(loss), and infinity where that is too large for a float."""
    return math.exp(loss) if not loss >= 700 else math.inf


def evaluate(token_losses, text, length, batch_size, protocol="stream", stride=None, progress=False):
    """The mean loss of the tokens of a text.

    A protocol says which rows the model reads and which tokens of a row count. With tokens t[0], t[1], ... and rows of
    L = `length` tokens at most:

    - `stream`: row k is t[kL : kL + L]. Every token counts but the first of each row, which nothing comes before.
    - `line`: a row is a line, without what exceeds L tokens. Every token counts but the first of each row. Padding
      does not count. The mean is over all tokens, so that it does not depend on the batches.
    - `sliding`: row k is t[kN : kN + L] with N = `stride`. Row 0 counts as in `stream`. In the others only the last N
      tokens count, which no earlier row holds, each with L - N to L - 1 tokens of context. So every token but t[0]
      counts once. With N = L there is no context for the first token of a row and the result is that of `stream`.

    Args:
        token_losses: function from int32 ids (batch, n) to float losses (batch, n - 1), in nats; n is at most
            `length`. Rows are padded on the right, with the id 0.
        text: `algpt2.data.tokenized_text.TokenizedText`; for `line` with a line in each row.
        length: int. The longest row, in tokens.
        batch_size: int. The rows evaluated at once; it does not change the result.
        protocol: str. One of `PROTOCOLS`.
        stride: int. For `sliding` only: 1 to `length`; `None` means half of `length`.
        progress: bool. Whether to show a progress bar, on a terminal.

    Returns:
        `Evaluation`.

    Raises:
        InputError: if there is no token to predict, or the stride does not fit.

    References:
        `sliding`: Press et al., 2021, https://arxiv.org/abs/2012.15832, section 2. Word-level perplexity: Radford et
        al., 2019, Language Models are Unsupervised Multitask Learners, section 3.1.

    Example:
        >>> from algpt2.data.tokenized_text import TokenizedText
        >>> text = TokenizedText(np.arange(10), starts=np.array([0, 10]), words=5, bytes=20)
        >>> evaluate(lambda ids: np.log(2) * np.ones(ids[:, 1:].shape), text, length=4, batch_size=2).perplexity
        2.0
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    if protocol == "sliding":
        stride = stride or length // 2
        if not 1 <= stride <= length:
            raise InputError(f"--stride {stride} must be 1 to the tokens of a row, {length}")
    else:
        stride = None
    starts, ends, first_counted = _rows(text, length, protocol, stride)
    total, count = 0.0, 0
    batches = range(0, len(starts), batch_size)
    for first in tqdm(batches, desc="evaluating", unit="batch", leave=False, disable=None if progress else True):
        batch = slice(first, first + batch_size)
        lengths = ends[batch] - starts[batch]
        ids = np.zeros((len(lengths), lengths.max()), dtype=np.int32)
        for row, start, end in zip(ids, starts[batch], ends[batch], strict=True):
            row[: end - start] = text.tokens[start:end]
        places = np.arange(1, ids.shape[1])
        counted = (first_counted[batch, None] <= places) & (places < lengths[:, None])
        losses = np.asarray(token_losses(ids), dtype=np.float64)[counted]
        total += losses.sum()
        count += losses.size
    if not count:
        raise InputError("the text has no token to predict; give more text")
    return Evaluation(
        protocol, float(total / count), count, length, stride, len(text.tokens), int(text.words), int(text.bytes)
    )


def _rows(text, length, protocol, stride):
    """The start and end of every row that predicts a token, and the first of its tokens that counts."""
    size = len(text.tokens)
    if protocol == "line":
        starts = np.asarray(text.starts[:-1])
        ends = np.minimum(starts + length, text.starts[1:])
        # Lines of similar length go together, so that little of a batch is padding.
        order = np.argsort(ends - starts, kind="stable")
        starts, ends = starts[order], ends[order]
    else:
        stride = stride or length
        starts = np.arange(0, max(1, size - (length - stride)), stride)
        ends = np.minimum(starts + length, size)
    first_counted = np.ones(len(starts), dtype=np.int64)
    if protocol == "sliding":
        first_counted[1:] = max(1, length - stride)
    predicting = ends - starts > first_counted
    return starts[predicting], ends[predicting], first_counted[predicting]


def validation_text(checkpoint, dataset, length=None, by="document", options=DEFAULT_OPTIONS):
    """The tokens to evaluate a checkpoint on, made with its tokenizer.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`, with a tokenizer.
        dataset: str, as `--dataset`; or `algpt2.data.corpus.Documents`.
        length: int. The tokens of a row; `None` means the configuration's `n_positions`.
        by: str. What a row of the text is, as in `algpt2.data.tokenized_text.tokenize`.
        options: `algpt2.data.corpus.TextOptions`, for a str.

    Returns:
        tuple of the `TokenizedText` and the length of a row.

    Raises:
        InputError: if anything is missing or does not fit.
    """
    length = block_length(length, checkpoint.config)
    tokenizer = checkpoint.require_tokenizer()
    documents = dataset if isinstance(dataset, Documents) else read_documents(dataset, options)
    text = tokenize(documents, tokenizer, by)
    if len(text.tokens) < 2:
        raise InputError(f"{documents.name}: there is no token to predict; give more text")
    return text, length
