"""A stream of tokens to blocks, and the order in which training sees them."""

import functools

import numpy as np

from algpt2.data.tokenized_text import tokenize
from algpt2.errors import InputError


class Blocks:
    """The rows that a model is trained on, all of one length.

    Args:
        text: `TokenizedText`.
        length: int. The tokens of a row.
        packing: str. `"stream"` cuts all tokens in a row into blocks and leaves the rest out; `"line"` makes a block
            of every row of the text, cut or padded to the length; rows of one token have nothing to predict and are
            left out.
        padding: int. The token id that pads lines.

    Raises:
        InputError: if the text does not fill one block.
    """

    def __init__(self, text, length, packing="stream", padding=0):
        self.text, self.length, self.packing, self.padding = text, length, packing, padding
        if packing == "stream":
            self._count = len(text.tokens) // length
            self._stream = text.tokens[: self._count * length].reshape(self._count, length)
        else:
            self._lines = np.flatnonzero(np.diff(text.starts) > 1)
            self._count = len(self._lines)
        if self._count == 0:
            raise InputError(
                f"the text has {len(text.tokens)} tokens, fewer than one block of {length}; give more text"
            )

    def __len__(self):
        return self._count

    def rows(self, indices):
        """Some blocks.

        Args:
            indices: int array (n,).

        Returns:
            tuple of ids, int32 (n, length), and mask, int32 (n, length), 0 for padding.
        """
        if self.packing == "stream":
            ids = self._stream[indices].astype(np.int32)
            return ids, np.ones_like(ids)
        lines = self._lines[indices]
        starts = np.asarray(self.text.starts[lines])[:, None]
        ends = np.asarray(self.text.starts[lines + 1])[:, None]
        places = starts + np.arange(self.length)
        mask = places < ends
        ids = np.where(mask, self.text.tokens[np.minimum(places, ends - 1)], self.padding)
        return ids.astype(np.int32), mask.astype(np.int32)


class TrainingOrder:
    """The block of every training sample: all blocks in a new random order, epoch after epoch.

    Args:
        block_count: int.
        sample_count: int. The samples of a run: steps times batch size.
        seed: int.

    Example:
        >>> order = TrainingOrder(block_count=3, sample_count=6, seed=0)
        >>> sorted(order[np.arange(3)].tolist()), sorted(order[np.arange(3, 6)].tolist())
        ([0, 1, 2], [0, 1, 2])
    """

    def __init__(self, block_count, sample_count, seed):
        self.block_count, self.sample_count, self.seed = block_count, sample_count, seed
        # A batch may reach into the next epoch.
        self._permutation = functools.lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch):
        # Half the memory of int64, in the same order.
        dtype = np.int32 if self.block_count < 1 << 31 else np.int64
        return np.random.default_rng([self.seed, epoch]).permutation(np.arange(self.block_count, dtype=dtype))

    def __len__(self):
        return self.sample_count

    def __getitem__(self, samples):
        """The blocks of some samples.

        Args:
            samples: int array (n,).

        Returns:
            int64 array (n,).
        """
        epochs, places = np.divmod(np.asarray(samples, dtype=np.int64), self.block_count)
        blocks = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            blocks[here] = self._permutation(int(epoch))[places[here]]
        return blocks

    def coins(self, samples):
        """A fair coin for every sample.

        Args:
            samples: int array (n,).

        Returns:
            bool array (n,).
        """
        return np.array([np.random.default_rng([self.seed, 1, int(s)]).random() < 0.5 for s in samples])


def block_length(length, config):
    """The tokens of a block.

    Args:
        length: int, as `--length`; `None` means the configuration's `n_positions`.
        config: `ALGPT2Config`.

    Returns:
        int.

    Raises:
        InputError: if a block has nothing to predict, or does not fit the model.
    """
    length = length or config.n_positions
    if not 2 <= length <= config.n_positions:
        raise InputError(f"--length {length} must be at least 2 and at most n_positions, {config.n_positions}")
    return length


def pack_corpus(corpus, tokenizer, length, packing="stream", eval_protocol="stream"):
    """The tokens of a corpus as training and evaluation take them.

    Args:
        corpus: `algpt2.data.corpus.Corpus`.
        tokenizer: `transformers.PreTrainedTokenizerFast`.
        length: int. The tokens of a block.
        packing, eval_protocol: str, `"stream"` or `"line"`.

    Returns:
        tuple of `Blocks` and `TokenizedText`.

    Raises:
        InputError: if either text is too short.
    """
    by = {"stream": "document", "line": "line"}
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    training = tokenize(corpus.train, tokenizer, by=by[packing])
    validation = tokenize(corpus.validation, tokenizer, by=by[eval_protocol])
    if len(validation.tokens) < 2:
        raise InputError("the validation text has no token to predict; give more text")
    return Blocks(training, length, packing, padding), validation
