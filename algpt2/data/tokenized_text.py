"""Documents to one stream of tokens, kept on disk and read as it is needed."""

import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock
from tokenizers import Tokenizer
from tqdm.auto import tqdm

from algpt2.data.corpus import Documents
from algpt2.data.encoding import safe_cut, safe_pieces, start_ids, vocabulary_size
from algpt2.data.files import hash_file
from algpt2.data.hashing import json_hash
from algpt2.data.lines import lines
from algpt2.errors import InputError, library_errors
from algpt2.files.atomic import directory_replaced
from algpt2.files.disk import WriteError, storage_error
from algpt2.files.reading import read_json

CACHE_VARIABLE = "ALGPT2_CACHE"
# To be changed whenever the same text and tokenizer come to give other files.
CACHE_FORMAT = 2
TOKENS_FILE, STARTS_FILE, FACTS_FILE = "tokens.bin", "starts.bin", "text.json"
# The characters that are tokenized at once, and the characters that the overhead of each text counts as.
BATCH, TEXT_COST = 1 << 20, 128


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


def tokenize(documents, tokenizer, by="document", cache=None):
    """The tokens of some documents, made once and kept in files that are read as they are needed.

    Args:
        documents: `algpt2.data.corpus.Documents`, or an iterable of str, whose tokens stay in memory.
        tokenizer: `transformers.PreTrainedTokenizerFast`.
        by: str. `"document"` ends every document with the end-of-text token; `"line"` makes a row of every line that
            is not empty, without an end. What the tokenizer puts before a text, it puts before every row.
        cache: path of the directory of the files. By default that of the environment variable `ALGPT2_CACHE`, or
            `~/.cache/algpt2`.

    Returns:
        `TokenizedText`. Words and bytes are those of the text before it was detokenized.

    Raises:
        InputError: if the documents cannot be read, or the files cannot be written.

    Example:
        >>> from algpt2.data.train_tokenizer import train_tokenizer
        >>> text = tokenize(["low lower"], train_tokenizer(["low lower lowest"] * 10, vocab_size=260))
        >>> int(text.tokens[-1]), text.words, text.bytes
        (0, 2, 9)
    """
    if not isinstance(documents, Documents):
        encoder = _Encoder(Documents.of(documents), tokenizer, by)
        tokens, ends = map(np.concatenate, zip(*encoder, strict=True))
        return TokenizedText(tokens, ends, encoder.words, encoder.bytes)

    encoder = _Encoder(documents, tokenizer, by)
    key = json_hash(CACHE_FORMAT, documents.fingerprint(), *encoder.identity)[:32]
    root = Path(cache or os.environ.get(CACHE_VARIABLE) or _own_cache())
    text = _mapped(root / key)
    if text is None:
        try:
            root.mkdir(parents=True, exist_ok=True)
            # Of several processes that want the same text one makes it. The system frees the lock of a killed one.
            with FileLock(root / f"{key}.lock"):
                text = _mapped(root / key)
                if text is None:
                    _write(encoder, root / key)
                    text = _mapped(root / key)
        except (OSError, WriteError) as error:
            cause = storage_error(error)
            raise WriteError(
                f"{root}: tokens cannot be written there ({getattr(cause, 'strerror', None) or cause}); "
                f"name a directory with room in the environment variable {CACHE_VARIABLE}"
            ) from cause
    return text


def _own_cache():
    try:
        return Path.home() / ".cache" / "algpt2"
    except RuntimeError as error:
        message = f"no home directory to keep tokens in; name a directory in the environment variable {CACHE_VARIABLE}"
        raise InputError(message) from error


class _Encoder:
    """Iterates over the tokens of documents in batches, each with the places where rows end; counts the source."""

    def __init__(self, documents, tokenizer, by):
        self.documents, self.by = documents, by
        self.start, self.end = start_ids(tokenizer), [tokenizer.eos_token_id]
        # A copy without the padding and truncation that the tokenizer may be set to.
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.encode_special_tokens = tokenizer.backend_tokenizer.encode_special_tokens
        self.words = self.bytes = 0
        self.dtype = np.dtype(np.uint16 if vocabulary_size(tokenizer) <= 1 << 16 else np.uint32)

    @property
    def identity(self):
        """list: what the tokens of a text depend on."""
        return [self.backend.to_str(), self.backend.encode_special_tokens, self.start, self.end, self.by]

    def __iter__(self):
        # The first row starts at 0.
        yield np.zeros(0, self.dtype), np.zeros(1, np.int64)
        position = 0
        for batch in _batches(self._texts()):
            texts = [text for text, _ in batch if isinstance(text, str)]
            with library_errors(f"{self.documents.name}: the tokenizer fails on the text; take another one"):
                encodings = iter(self.backend.encode_batch_fast(texts, add_special_tokens=False))
            ids = [next(encodings).ids if isinstance(text, str) else text for text, _ in batch]
            ends = position + np.cumsum([len(i) for i in ids])
            tokens = np.fromiter(itertools.chain.from_iterable(ids), self.dtype, ends[-1] - position)
            position = ends[-1]
            yield tokens, ends[[row_ends for _, row_ends in batch]]

    def _texts(self):
        """Yields what comes one after the other, a str to tokenize or a list of ids, and whether a row ends there."""
        cut = safe_cut(self.backend)
        start = [(self.start, False)] if self.start else []
        size = self.documents.size
        with tqdm(desc="tokenizing", total=size, unit="B", unit_scale=True, leave=False, delay=2, disable=None) as bar:
            for pieces in self.documents.pieces():
                texts = self._counted(pieces, bar)
                if self.by == "line":
                    for line in filter(str.strip, lines(texts)):
                        yield from start
                        *parts, last = safe_pieces([line], cut)
                        yield from ((part, False) for part in parts)
                        yield last, True
                else:
                    yield from start
                    yield from ((text, False) for text in safe_pieces(texts, cut))
                    yield self.end, True

    def _counted(self, pieces, bar):
        for piece in pieces:
            self.words += piece.words
            self.bytes += piece.bytes
            bar.update(piece.bytes)
            yield piece.text


def _batches(texts):
    batch, size = [], 0
    for text, row_ends in texts:
        batch.append((text, row_ends))
        size += TEXT_COST + len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _write(encoder, directory):
    with directory_replaced(directory) as new:
        token_count = row_count = 0
        with (new / TOKENS_FILE).open("wb") as tokens_file, (new / STARTS_FILE).open("wb") as starts_file:
            for tokens, starts in encoder:
                tokens_file.write(tokens.data)
                starts_file.write(starts.astype(np.int64).data)
                token_count, row_count = token_count + len(tokens), row_count + len(starts)
        facts = {"dtype": encoder.dtype.name, "tokens": token_count, "starts": row_count}
        facts |= {"words": encoder.words, "bytes": encoder.bytes}
        facts |= {name: hash_file(new / name) for name in (TOKENS_FILE, STARTS_FILE)}
        (new / FACTS_FILE).write_text(json.dumps({"facts": facts, "hash": json_hash(facts)}))


def _mapped(directory):
    """The text that a directory holds; None if it holds none that this process can read, or not what was written."""
    try:
        stored = read_json(directory / FACTS_FILE)
        facts = stored["facts"]
        hashes = {name: hash_file(directory / name) for name in (TOKENS_FILE, STARTS_FILE)}
        if stored["hash"] != json_hash(facts) or hashes != {name: facts[name] for name in hashes}:
            return None
        tokens = _mapped_array(directory / TOKENS_FILE, facts["dtype"], facts["tokens"])
        starts = _mapped_array(directory / STARTS_FILE, "int64", facts["starts"])
        return TokenizedText(tokens, starts, facts["words"], facts["bytes"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _mapped_array(path, dtype, length):
    # An empty file cannot be mapped.
    return np.memmap(path, dtype=dtype, mode="r") if length else np.zeros(0, dtype)
