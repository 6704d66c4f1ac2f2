"""Documents to one stream of tokens, the stream to blocks, and the order in which training sees them."""

import functools
import re
from dataclasses import dataclass

import numpy as np
from tokenizers import pre_tokenizers

from algpt2.errors import InputError

# Byte-level BPE never merges across the edge from other characters to white space, so a text may be cut there.
SAFE_CUT = re.compile(r"(?<=\S)(?=\n)")


def pieces(document):
    """A document cut at line ends into pieces, for tokenizing in parallel.

    Byte-level BPE without a prefix space gives the pieces the tokens that it gives the whole.

    Args:
        document: str.

    Returns:
        list of str.
    """
    return SAFE_CUT.split(document)


@dataclass(frozen=True)
class TokenizedText:
    """The tokens of a text, and what its perplexity per word and per byte needs.

    Args:
        tokens: int array (tokens,).
        starts: int64 array (rows + 1,). Row i is `tokens[starts[i]:starts[i + 1]]`, a document or a line.
        words: int. The white-space separated words of the text.
        bytes: int. The length of the text in UTF-8.
    """

    tokens: np.ndarray
    starts: np.ndarray
    words: int
    bytes: int


def tokenize(documents, tokenizer, by="document"):
    """The tokens of some documents.

    Args:
        documents: iterable of str.
        tokenizer: `transformers.PreTrainedTokenizerFast`.
        by: str. `"document"` ends every document with the end-of-text token; `"line"` makes a row of every line that
            is not empty, without an end.

    Returns:
        `TokenizedText`.
    """
    backend = tokenizer.backend_tokenizer
    pre_tokenizer = backend.pre_tokenizer
    may_cut = isinstance(pre_tokenizer, pre_tokenizers.ByteLevel) and not pre_tokenizer.add_prefix_space
    rows, words, size = [], 0, 0
    for document in documents:
        words, size = words + len(document.split()), size + len(document.encode())
        if by == "line":
            texts = [line for line in document.splitlines() if line.strip()]
        else:
            texts = pieces(document) if may_cut else [document]
        encoded = [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
        if by == "document":
            encoded = [[i for ids in encoded for i in ids] + [tokenizer.eos_token_id]]
        rows += [np.array(ids, dtype=np.int32) for ids in encoded]
    starts = np.cumsum([0, *map(len, rows)])
    return TokenizedText(np.concatenate(rows), starts, words, size)


class Blocks:
    """The rows that a model is trained on, all of one length.

    Args:
        text: `TokenizedText`.
        length: int. The tokens of a row.
        packing: str. `"stream"` cuts all tokens in a row into blocks and leaves the rest out; `"line"` makes a block
            of every row of the text, cut or padded to the length.
        padding: int. The token id that pads lines.

    Raises:
        InputError: if the text does not fill one block.
    """

    def __init__(self, text, length, packing="stream", padding=0):
        self.text, self.length, self.packing, self.padding = text, length, packing, padding
        self._count = len(text.tokens) // length if packing == "stream" else len(text.starts) - 1
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
        ids = np.full((len(indices), self.length), self.padding, dtype=np.int32)
        mask = np.zeros_like(ids)
        starts = np.asarray(indices) * self.length if self.packing == "stream" else self.text.starts[indices]
        ends = starts + self.length
        if self.packing == "line":
            ends = np.minimum(ends, self.text.starts[np.asarray(indices) + 1])
        for row, (start, end) in enumerate(zip(starts, ends, strict=True)):
            ids[row, : end - start] = self.text.tokens[start:end]
            mask[row, : end - start] = 1
        return ids, mask


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
        return np.random.default_rng([self.seed, epoch]).permutation(self.block_count)

    def __len__(self):
        return self.sample_count

    def __getitem__(self, samples):
        """The blocks of some samples.

        Args:
            samples: int array (n,).

        Returns:
            int64 array (n,).
        """
        epochs, places = np.divmod(samples, self.block_count)
        return np.array([self._permutation(int(e))[p] for e, p in zip(epochs, places, strict=True)], dtype=np.int64)

    def coins(self, samples):
        """A fair coin for every sample.

        Args:
            samples: int array (n,).

        Returns:
            bool array (n,).
        """
        return np.array([np.random.default_rng([self.seed, 1, int(s)]).random() < 0.5 for s in samples])
