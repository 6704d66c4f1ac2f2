"""Packed training blocks as TFRecord shards, local or on `gs://`."""

import contextlib
import json
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.python.lib.io.tf_record import tf_record_random_reader
from tqdm.auto import tqdm

from algpt2.data import TFRECORDS_FILE
from algpt2.data.arguments import require_options_used, text_options
from algpt2.data.corpus import read_corpus
from algpt2.data.encoding import TOKENIZER_FILE, vocabulary_size
from algpt2.data.packing import pack_corpus
from algpt2.data.tokenized_text import TokenizedText
from algpt2.data.tokenizer import load_tokenizer, require_tokenizer, save_tokenizer, tokenizer_hash
from algpt2.errors import InputError
from algpt2.files.reading import INDEX_BYTES, TOKENIZER_BYTES, parse_json

VALIDATION_FILE = "validation.tfrecord"
# Around the data of a record stand its length with a checksum, and a checksum of the data.
HEADER, FOOTER = 12, 4
ROWS_AT_ONCE = 1024
# What tfrecords.json says of the text that is held out.
VALIDATION_FACTS = ("rows", "tokens", "words", "bytes")


def write_tfrecords(
    directory, blocks, validation, tokenizer, shard_count, progress=False, eval_protocol="stream", dataset=None
):
    """Write blocks as TFRecord shards, with the validation text and the tokenizer.

    A record is a `tf.train.Example` of two byte strings: `ids`, little-endian int32 (length), and `mask`, uint8
    (length), 0 for padding. So all records have one size, and each is found without an index. Block i is record
    `i // shard_count` of shard `i % shard_count`. Records of `validation.tfrecord` hold the `ids` of a row of the text.

    Args:
        directory: str or path, local or such as `gs://bucket/folder`; made if it is not there.
        blocks: `algpt2.data.packing.Blocks`.
        validation: `algpt2.data.tokenized_text.TokenizedText`.
        tokenizer: `transformers.PreTrainedTokenizerFast`.
        shard_count: int. One for each host or worker that reads them is usual.
        progress: bool. Whether to show a progress bar, on a terminal.
        eval_protocol: str, `"stream"` or `"line"`. What the rows of the validation text are.
        dataset: str. Where the text came from, for readers of tfrecords.json.

    Raises:
        InputError: if there are fewer blocks than shards, shards are there already, or they cannot be written.
    """
    directory = str(directory)
    if shard_count > len(blocks):
        raise InputError(f"--shards {shard_count} is more than the {len(blocks)} blocks of the text; ask for fewer")
    with _file_errors(directory, "written"):
        if tf.io.gfile.exists(_join(directory, TFRECORDS_FILE)):
            raise InputError(f"{directory}: holds TFRecords already; give another --output-dir, or remove it first")
        tf.io.gfile.makedirs(directory)
        for name in tf.io.gfile.listdir(directory):
            # A process that was killed may have left other numbers of shards.
            if re.fullmatch(r"train-\d{5}-of-\d{5}\.tfrecord", name):
                tf.io.gfile.remove(_join(directory, name))
        hash = _write_tokenizer(directory, tokenizer)
        _write_shards(directory, blocks, shard_count, progress)
        _write_validation(directory, validation)
        facts = len(validation.starts) - 1, len(validation.tokens), validation.words, validation.bytes
        index = {
            "length": blocks.length,
            "packing": blocks.packing,
            "padding": int(blocks.padding),
            "blocks": [len(range(shard, len(blocks), shard_count)) for shard in range(shard_count)],
            "record_bytes": _record_bytes(blocks.length),
            "vocab_size": vocabulary_size(tokenizer),
            "tokenizer": hash,
            "validation": dict(zip(VALIDATION_FACTS, map(int, facts), strict=True)),
            "dataset": dataset,
            "eval_protocol": eval_protocol,
        }
        # Last and in one step: a directory with this file is whole.
        temporary = _join(directory, f".{TFRECORDS_FILE}")
        with tf.io.gfile.GFile(temporary, "w") as file:
            file.write(json.dumps(index, indent=2) + "\n")
        tf.io.gfile.rename(temporary, _join(directory, TFRECORDS_FILE), overwrite=True)


class TFRecordBlocks:
    """The blocks of a directory that `write_tfrecords` wrote, with the interface of `algpt2.data.packing.Blocks`.

    Any block can be read on its own, and shards are read at the same time. A run has the same batches, and bit for bit
    the same weights, as one on the text itself. A block's length, checksum and token ids are checked as it is read.

    Args:
        directory: str or path, local or `gs://`.

    Raises:
        InputError: if the directory is incomplete or damaged.

    Example:
        >>> blocks = TFRecordBlocks("gs://bucket/wikitext")  # doctest: +SKIP
        >>> ids, mask = blocks.rows([0, 17])  # doctest: +SKIP
    """

    def __init__(self, directory):
        self.directory = str(directory)
        self.index = _read_index(self.directory)
        self.length, self.packing, self.padding = (self.index[key] for key in ("length", "packing", "padding"))
        # Written since 0.2.
        self.eval_protocol = self.index.get("eval_protocol", "stream")
        counts, size = self.index["blocks"], self.index["record_bytes"]
        self._paths = [_join(self.directory, _shard_name(shard, len(counts))) for shard in range(len(counts))]
        with _file_errors(self.directory, "read"):
            for path, count in zip(self._paths, counts, strict=True):
                found = tf.io.gfile.stat(path).length if tf.io.gfile.exists(path) else None
                if found != count * size:
                    state = "missing" if found is None else f"{found} bytes long instead of {count * size}"
                    raise InputError(f"{path}: {state}; write the TFRecords of {self.directory} again")
        # Now that the size is known to be real: a record is made to see how long one is.
        if self.length > size or size != _record_bytes(self.length):
            raise InputError(
                f"{self.directory}: {TFRECORDS_FILE}: record_bytes do not fit the length; write them again"
            )

    def __len__(self):
        return sum(self.index["blocks"])

    def rows(self, indices):
        """Some blocks.

        Args:
            indices: int array (n,).

        Returns:
            tuple of ids, int32 (n, length), and mask, int32 (n, length), 0 for padding.

        Raises:
            InputError: if a record is damaged or a file cannot be read.
        """
        indices = np.asarray(indices)
        ids = np.empty((len(indices), self.length), dtype=np.int32)
        mask = np.empty_like(ids)
        positions, shards = np.divmod(indices, len(self._paths))

        def read(shard):
            path = self._paths[shard]
            with _file_errors(path, "read"), contextlib.closing(tf_record_random_reader(path)) as reader:
                for row in np.flatnonzero(shards == shard):
                    ids[row], mask[row] = self._record(reader, path, int(positions[row]))

        needed = np.unique(shards)
        with ThreadPoolExecutor(max(1, min(64, len(needed)))) as pool:
            list(pool.map(read, needed))
        return ids, mask

    def validation(self):
        """The validation text.

        Returns:
            `algpt2.data.tokenized_text.TokenizedText`.

        Raises:
            InputError: if its file is missing or damaged.
        """
        path, facts = _join(self.directory, VALIDATION_FILE), self.index["validation"]
        with _file_errors(path, "read"):
            _require_file(path)
            records = list(tf.data.TFRecordDataset(path).as_numpy_iterator())
        rows = [self._features(path, record)["ids"] for record in records]
        tokens = np.concatenate([np.zeros(0, np.int32), *rows])
        if len(rows) != facts["rows"] or len(tokens) != facts["tokens"]:
            raise InputError(
                f"{path}: {len(rows)} rows of {len(tokens)} tokens, expected {facts['rows']} of {facts['tokens']}; "
                f"write the TFRecords of {self.directory} again"
            )
        return TokenizedText(tokens, np.cumsum([0, *map(len, rows)]), facts["words"], facts["bytes"])

    def tokenizer(self):
        """The tokenizer that the blocks were made with.

        Returns:
            `transformers.PreTrainedTokenizerFast`.

        Raises:
            InputError: if it is missing, damaged or another one.
        """
        with tempfile.TemporaryDirectory() as temporary:
            with _file_errors(self.directory, "read"):
                for name in tf.io.gfile.listdir(self.directory):
                    if name.endswith(".json") and name != TFRECORDS_FILE:
                        _require_file(_join(self.directory, name), TOKENIZER_BYTES)
                        tf.io.gfile.copy(_join(self.directory, name), _join(temporary, name))
            try:
                tokenizer = load_tokenizer(temporary)
                found = tokenizer_hash((Path(temporary) / TOKENIZER_FILE).read_bytes())
            except InputError as error:
                raise InputError(str(error).replace(temporary, self.directory)) from error
        if found != self.index["tokenizer"]:
            raise InputError(f"{self.directory}: {TOKENIZER_FILE} is not the one that the TFRecords were made with")
        return tokenizer

    def _record(self, reader, path, position):
        try:
            # With its checksums.
            example, _ = reader.read(position * self.index["record_bytes"])
        except (tf.errors.DataLossError, IndexError) as error:
            raise InputError(f"{path}: record {position} is damaged ({error}); write the TFRecords again") from error
        features = self._features(path, example)
        if any(len(features.get(name, ())) != self.length for name in ("ids", "mask")):
            raise InputError(f"{path}: record {position} has not {self.length} tokens; write the TFRecords again")
        return features["ids"], features["mask"]

    def _features(self, path, example):
        try:
            stored = tf.train.Example.FromString(example).features.feature
            dtypes = {"ids": "<i4", "mask": np.uint8}
            features = {name: np.frombuffer(stored[name].bytes_list.value[0], dtypes[name]) for name in stored}
            ids = features["ids"]
        # protobuf's DecodeError has no public name that all its versions share.
        except Exception as error:
            raise InputError(f"{path}: a record is damaged ({error}); write the TFRecords again") from error
        if ids.size and not 0 <= ids.min() <= ids.max() < self.index["vocab_size"]:
            raise InputError(
                f"{path}: a token is not among the {self.index['vocab_size']} of the vocabulary; "
                "write the TFRecords again"
            )
        return features


def is_tfrecords(directory):
    """bool: whether a directory, local or `gs://`, holds what `write_tfrecords` wrote."""
    return tf.io.gfile.exists(_join(directory, TFRECORDS_FILE))


def _example(**arrays):
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[array.tobytes()])) for name, array in arrays.items()
    }
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def _record_bytes(length):
    return HEADER + len(_example(ids=np.zeros(length, "<i4"), mask=np.zeros(length, np.uint8))) + FOOTER


def _write_shards(directory, blocks, shard_count, progress):
    with contextlib.ExitStack() as stack:
        paths = [_join(directory, _shard_name(shard, shard_count)) for shard in range(shard_count)]
        writers = [stack.enter_context(tf.io.TFRecordWriter(path)) for path in paths]
        bar = tqdm(total=len(blocks), desc="writing", unit="block", disable=None if progress else True)
        for start in range(0, len(blocks), ROWS_AT_ONCE):
            indices = np.arange(start, min(start + ROWS_AT_ONCE, len(blocks)))
            for index, ids, mask in zip(indices, *blocks.rows(indices), strict=True):
                writers[index % shard_count].write(_example(ids=ids.astype("<i4"), mask=mask.astype(np.uint8)))
            bar.update(len(indices))
        bar.close()


def _write_validation(directory, text):
    with tf.io.TFRecordWriter(_join(directory, VALIDATION_FILE)) as writer:
        for start, end in zip(text.starts[:-1], text.starts[1:], strict=True):
            writer.write(_example(ids=np.asarray(text.tokens[start:end]).astype("<i4")))


def _write_tokenizer(directory, tokenizer):
    """Write the tokenizer's files, and return the hash of the tokenizer."""
    with tempfile.TemporaryDirectory() as temporary:
        save_tokenizer(tokenizer, temporary)
        for path in Path(temporary).iterdir():
            tf.io.gfile.copy(str(path), _join(directory, path.name), overwrite=True)
        return tokenizer_hash((Path(temporary) / TOKENIZER_FILE).read_bytes())


def _read_index(directory):
    path = _join(directory, TFRECORDS_FILE)
    with _file_errors(directory, "read"):
        if not tf.io.gfile.isdir(directory):
            raise InputError(f"{directory}: no such directory; write it with python -m algpt2_tf.tfrecords")
        if not tf.io.gfile.exists(path):
            raise InputError(
                f"{directory}: holds no {TFRECORDS_FILE}, so its TFRecords are not complete; write them again"
            )
        _require_file(path, INDEX_BYTES)
        with tf.io.gfile.GFile(path, "rb") as file:
            content = file.read()
    try:
        index = parse_json(content, path)
        counts, facts = index["blocks"], index["validation"]
        numbers = [*counts, *(index[key] for key in ("length", "record_bytes", "padding", "vocab_size"))]
        numbers += [facts[key] for key in VALIDATION_FACTS]
        complete = (
            all(type(number) is int and 0 <= number < 1 << 48 for number in numbers)
            and counts == [len(range(shard, sum(counts), len(counts))) for shard in range(len(counts))]
            and counts[-1] > 0
            and index["packing"] in ("stream", "line")
            and index.get("eval_protocol", "stream") in ("stream", "line")
            and isinstance(index["tokenizer"], str)
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}: {error}); write the TFRecords again") from error
    if not complete:
        raise InputError(f"{path}: its numbers of blocks, length and record size do not fit; write the TFRecords again")
    return index


def _require_file(path, most=None):
    """Raise an InputError unless a path is of a file with something in it: TensorFlow would wait for a pipe."""
    size = tf.io.gfile.stat(path).length
    if tf.io.gfile.isdir(path) or not size or (most is not None and size > most):
        raise InputError(f"{path}: is empty, too large or not an ordinary file; write the TFRecords again")


def _shard_name(shard, count):
    return f"train-{shard:05}-of-{count:05}.tfrecord"


def _join(directory, name):
    # os.path.join, which keeps the slashes of gs://.
    return tf.io.gfile.join(str(directory), name)


@contextlib.contextmanager
def _file_errors(path, what):
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        raise InputError(f"{path}: cannot be {what} ({getattr(error, 'message', error)})") from error


def run(arguments):
    """The program of `algpt2_tf.tfrecords`.

    Args:
        arguments: `argparse.Namespace` of its command line.

    Raises:
        InputError: if the text, the tokenizer or an argument is wrong, or the files cannot be written.
    """
    if arguments.length < 2:
        raise InputError(f"--length {arguments.length}: a block needs at least 2 tokens")
    tokenizer = require_tokenizer(arguments.tokenizer)
    require_options_used(arguments)
    corpus = read_corpus(arguments.dataset, arguments.validation, text_options(arguments))
    blocks, validation = pack_corpus(corpus, tokenizer, arguments.length, arguments.packing, arguments.eval_protocol)
    write_tfrecords(
        arguments.output_dir,
        blocks,
        validation,
        tokenizer,
        arguments.shards,
        progress=True,
        dataset=arguments.dataset,
        eval_protocol=arguments.eval_protocol,
    )
    print(f"wrote {len(blocks)} blocks of {arguments.length} tokens to {arguments.output_dir}")
