"""Documents to one stream of tokens, the stream to blocks, and the order in which training sees them."""

import functools
import re

import numpy as np
from tokenizers import pre_tokenizers
from tqdm.auto import tqdm

from algpt2.errors import InputError

# Byte-level BPE never merges across the edge from other characters to white space, so a text may be cut there.
SAFE_CUT = re.compile(r"(?<=\S)(?=\n)")
PIECES_AT_ONCE = 4096


def pieces(document):
    """A document cut at line ends into pieces, for tokenizing in parallel.

    Byte-level BPE without a prefix space gives the pieces the tokens that it gives the whole.

    Args:
        document: str.

    Returns:
        list of str.
    """
    return SAFE_CUT.split(document)


def token_stream(tokenizer, documents):
    """The tokens of all documents in a row, the end-of-text token after each.

    Args:
        tokenizer: `transformers.PreTrainedTokenizerFast`.
        documents: list of str.

    Returns:
        int32 array.
    """
    backend = tokenizer.backend_tokenizer
    pre_tokenizer = backend.pre_tokenizer
    may_cut = isinstance(pre_tokenizer, pre_tokenizers.ByteLevel) and not pre_tokenizer.add_prefix_space
    parts = []
    with tqdm(
        total=sum(map(len, documents)), desc="tokenizing", unit="char", unit_scale=True, delay=2, disable=None
    ) as progress:
        for document in documents:
            texts = pieces(document) if may_cut else [document]
            for start in range(0, len(texts), PIECES_AT_ONCE):
                batch = texts[start : start + PIECES_AT_ONCE]
                parts.extend(
                    np.array(encoding.ids, dtype=np.int32)
                    for encoding in backend.encode_batch_fast(batch, add_special_tokens=False)
                )
                progress.update(sum(map(len, batch)))
            parts.append(np.array([tokenizer.eos_token_id], dtype=np.int32))
    return np.concatenate(parts)


def blocks(stream, length):
    """A token stream cut into blocks; the rest that fills no block is left out.

    Args:
        stream: int32 array (tokens,).
        length: int. The tokens of a block.

    Returns:
        int32 array (blocks, length).

    Raises:
        InputError: if the stream does not fill one block.

    Example:
        >>> blocks(np.arange(7), 3)
        array([[0, 1, 2],
               [3, 4, 5]])
    """
    count = len(stream) // length
    if count == 0:
        raise InputError(f"the text has {len(stream)} tokens, fewer than one block of {length}; give more text")
    return stream[: count * length].reshape(count, length)


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
