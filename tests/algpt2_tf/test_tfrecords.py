"""TFRecord shards hold the blocks of the text they were made from, and damage to them is found."""

import json
import os
import uuid

import numpy as np
import pytest
import tensorflow as tf
from models import save_checkpoint, tiny_config

from algpt2.data.corpus import read_corpus
from algpt2.data.packing import Blocks, TrainingOrder
from algpt2.data.tokenized_text import TokenizedText, tokenize
from algpt2.data.train_tokenizer import train_tokenizer
from algpt2.errors import InputError
from algpt2_tf.evaluate import main as run_evaluation
from algpt2_tf.evaluation import packed_text
from algpt2_tf.tfrecord_blocks import TFRecordBlocks, write_tfrecords
from algpt2_tf.tfrecords import main


def make_text(count=500, seed=0):
    draw = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.sort(draw.integers(1, count, size=40)), [count]])
    return TokenizedText(draw.integers(600, size=count).astype(np.int32), starts, words=123, bytes=456)


@pytest.fixture
def written(text_tokenizer, tmp_path):
    blocks = Blocks(make_text(), 16)
    write_tfrecords(tmp_path / "records", blocks, make_text(90, seed=1), text_tokenizer, shard_count=4)
    return tmp_path / "records"


@pytest.mark.parametrize("packing", ["stream", "line"])
@pytest.mark.parametrize("shards", [1, 4, 7])
def test_rows_are_those_of_the_text(packing, shards, text_tokenizer, tmp_path):
    blocks, validation = Blocks(make_text(), 16, packing, padding=3), make_text(90, seed=1)
    write_tfrecords(tmp_path / "records", blocks, validation, text_tokenizer, shards)
    read = TFRecordBlocks(tmp_path / "records")
    assert (len(read), read.length, read.packing, read.padding) == (len(blocks), 16, packing, 3)
    order = TrainingOrder(len(blocks), 100, seed=5)
    for indices in (order[np.arange(100)], [0], [len(blocks) - 1, 0], np.arange(0)):
        for found, expected in zip(read.rows(indices), blocks.rows(indices), strict=True):
            np.testing.assert_array_equal(found, expected)
            assert found.dtype == expected.dtype == np.int32
    text = read.validation()
    np.testing.assert_array_equal(text.tokens, validation.tokens)
    np.testing.assert_array_equal(text.starts, validation.starts)
    assert (text.words, text.bytes) == (123, 456)
    tokenizer = read.tokenizer()
    assert tokenizer.get_vocab() == text_tokenizer.get_vocab() and tokenizer.eos_token_id == 0
    assert read.eval_protocol == "stream" and packed_text(tmp_path / "records", "stream").words == 123
    with pytest.raises(InputError, match="holds its text for --protocol stream, not line"):
        packed_text(tmp_path / "records", "line")


def test_tensorflow_reads_the_shards(written):
    blocks, names = Blocks(make_text(), 16), [f"train-{shard:05}-of-00004.tfrecord" for shard in range(4)]
    features = {name: tf.io.FixedLenFeature([], tf.string) for name in ("ids", "mask")}
    for shard, name in enumerate(names):
        expected = blocks.rows(np.arange(shard, len(blocks), 4))
        records = list(tf.data.TFRecordDataset(str(written / name)))
        assert len(records) in (len(blocks) // 4, len(blocks) // 4 + 1)
        for record, ids, mask in zip(records, *expected, strict=True):
            example = tf.io.parse_single_example(record, features)
            np.testing.assert_array_equal(tf.io.decode_raw(example["ids"], tf.int32), ids)
            np.testing.assert_array_equal(tf.io.decode_raw(example["mask"], tf.uint8), mask)


def test_a_file_system_that_is_not_local(text_tokenizer):
    # TensorFlow's own in-memory file system stands for gs://.
    directory, blocks = f"ram://{uuid.uuid4()}/records", Blocks(make_text(), 16)
    write_tfrecords(directory, blocks, make_text(90), text_tokenizer, 3)
    read = TFRecordBlocks(directory)
    np.testing.assert_array_equal(read.rows([5, 2])[0], blocks.rows([5, 2])[0])
    assert read.tokenizer().get_vocab() == text_tokenizer.get_vocab()


def test_command_line(text_tokenizer, tmp_path, capsys):
    text = "".join(list(read_corpus("python-docs").train)[:3])
    (tmp_path / "train.txt").write_text(text[:-1000], encoding="utf-8")
    (tmp_path / "valid.txt").write_text(text[-1000:], encoding="utf-8")
    text_tokenizer.save_pretrained(tmp_path / "tokenizer")
    arguments = [
        "--dataset", tmp_path / "train.txt", "--validation", tmp_path / "valid.txt", "--length", 32,
        "--tokenizer", tmp_path / "tokenizer", "--shards", 3, "--output-dir", tmp_path / "records",
    ]  # fmt: skip
    main(list(map(str, arguments)))
    read = TFRecordBlocks(tmp_path / "records")
    corpus = read_corpus(str(tmp_path / "train.txt"), str(tmp_path / "valid.txt"))
    expected = Blocks(tokenize(corpus.train, text_tokenizer), 32)
    np.testing.assert_array_equal(read.rows(np.arange(len(read)))[0], expected.rows(np.arange(len(expected)))[0])
    validation = tokenize(corpus.validation, text_tokenizer)
    np.testing.assert_array_equal(read.validation().tokens, validation.tokens)
    assert (read.validation().words, read.validation().bytes) == (validation.words, validation.bytes)
    assert f"wrote {len(expected)} blocks of 32 tokens" in capsys.readouterr().out
    # They are evaluated as the text that they hold out.
    config = tiny_config(vocab_size=len(text_tokenizer), n_positions=32, eos_token_id=0)
    model = save_checkpoint(tmp_path / "model", config, tokenizer=text_tokenizer)
    found = []
    for dataset in (tmp_path / "records", tmp_path / "valid.txt"):
        run_evaluation(["--dataset", str(dataset), "--json", str(model)])
        found.append(json.loads(capsys.readouterr().out))
    assert (found[0]["tokens"], found[0]["loss"]) == (found[1]["tokens"], pytest.approx(found[1]["loss"], rel=1e-6))
    main(list(map(str, [*arguments, "--control-code", "<code>", "--output-dir", tmp_path / "coded"])))
    coded = TFRecordBlocks(tmp_path / "coded")
    assert coded.tokenizer().decode(coded.rows([0])[0][0]).startswith("<code>" + text[:10])
    capsys.readouterr()
    for extra, message in (
        ([], "holds TFRecords already"),
        (["--output-dir", tmp_path / "other", "--shards", 10**6], "--shards 1000000 is more than"),
        (["--output-dir", tmp_path / "other", "--length", 1], "needs at least 2 tokens"),
        (["--output-dir", tmp_path / "train.txt" / "x"], "cannot be written"),
        (["--output-dir", "nowhere://bucket/x"], "cannot be written"),
        (["--tokenizer", tmp_path], "tokenizer.json: no such file"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(list(map(str, [*arguments, *extra])))
        err = capsys.readouterr().err
        assert stopped.value.code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "other").exists()


def test_an_interrupted_writer_leaves_nothing_that_counts(text_tokenizer, tmp_path):
    class Interrupted(Blocks):
        def rows(self, indices):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tfrecords(tmp_path, Interrupted(make_text(), 16), make_text(), text_tokenizer, 5)
    assert list(tmp_path.glob("train-*"))
    with pytest.raises(InputError, match=r"no tfrecords\.json, so its TFRecords are not complete"):
        TFRecordBlocks(tmp_path)
    write_tfrecords(tmp_path, Blocks(make_text(), 16), make_text(), text_tokenizer, 2)
    assert len(list(tmp_path.glob("train-*"))) == 2
    assert len(TFRecordBlocks(tmp_path)) == 31


def as_pipe(path):
    path.unlink()
    os.mkfifo(path)


def corrupt(path, position, content):
    data = bytearray(path.read_bytes())
    data[position : position + len(content)] = content
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "train-00002-of-00004.tfrecord").unlink(), "train-00002-of-00004.tfrecord: missing"),
        (lambda d: (d / "validation.tfrecord").unlink(), "validation.tfrecord: cannot be read"),
        (lambda d: (d / "train-00001-of-00004.tfrecord").write_bytes(b"short"), "5 bytes long instead of"),
        (lambda d: corrupt(d / "train-00000-of-00004.tfrecord", 0, b"\7"), "record 0 is damaged"),
        (lambda d: corrupt(d / "train-00000-of-00004.tfrecord", 12, b"\xff" * 9), "record 0 is damaged"),
        (lambda d: corrupt(d / "train-00000-of-00004.tfrecord", 60, b"\1"), "record 0 is damaged"),
        (lambda d: as_pipe(d / "validation.tfrecord"), "validation.tfrecord: is empty, too large or not an ordinary"),
        (lambda d: as_pipe(d / "tfrecords.json"), "tfrecords.json: is empty, too large or not an ordinary file"),
        (lambda d: as_pipe(d / "tokenizer_config.json"), "tokenizer_config.json: is empty, too large or not an ordin"),
        (lambda d: (d / "tfrecords.json").write_text("[" * 10**5), "tfrecords.json: damaged"),
        (lambda d: corrupt(d / "validation.tfrecord", 40, b"\xff" * 9), "validation.tfrecord: cannot be read"),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
        (lambda d: train_tokenizer(["other text"], 300).save_pretrained(d), "not the one that the TFRecords"),
        (lambda d: (d / "tfrecords.json").write_text("{"), "tfrecords.json: damaged"),
        (lambda d: (d / "tfrecords.json").write_text("{}"), "tfrecords.json: damaged"),
    ],
)
def test_damage(damage, message, written):
    def use():
        blocks = TFRecordBlocks(written)
        blocks.rows(np.arange(len(blocks)))
        return blocks.validation(), blocks.tokenizer()

    use()
    damage(written)
    with pytest.raises(InputError) as error:
        use()
    assert message in str(error.value) and str(written) in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("blocks", [31, 0], "do not fit"),
        ("blocks", [11, 10, 10], "missing"),
        ("length", 17, "do not fit"),
        ("length", 10**12, "do not fit"),
        ("length", 16.0, "do not fit"),
        ("record_bytes", 0, "bytes long instead of 0"),
        ("blocks", [10**18] * 4, "do not fit"),
        ("blocks", [[8]] * 4, "do not fit"),
        ("packing", "x", "do not fit"),
        ("eval_protocol", {"a": 1}, "do not fit"),
        ("vocab_size", "600", "do not fit"),
        ("validation", {"rows": 1e308, "tokens": 91, "words": 1, "bytes": 1}, "do not fit"),
        ("validation", [1], "damaged"),
        ("vocab_size", 100, "not among the 100 of the vocabulary"),
        ("validation", {"rows": 41, "tokens": 91, "words": 1, "bytes": 1}, "expected 41 of 91"),
    ],
)
def test_an_index_that_does_not_fit(key, value, message, written):
    index = json.loads((written / "tfrecords.json").read_text())
    (written / "tfrecords.json").write_text(json.dumps({**index, key: value}))
    with pytest.raises(InputError, match=message):
        blocks = TFRecordBlocks(written)
        blocks.rows(np.arange(len(blocks)))
        blocks.validation()


def test_another_tokenizer_and_another_directory(written, tmp_path):
    train_tokenizer(["other text"], 300).save_pretrained(written)
    with pytest.raises(InputError, match="is not the one that the TFRecords were made with"):
        TFRecordBlocks(written).tokenizer()
    with pytest.raises(InputError, match="no such directory"):
        TFRecordBlocks(tmp_path / "none")
