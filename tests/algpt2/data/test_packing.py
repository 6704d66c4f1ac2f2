"""Tokens, their files, blocks and their order."""

import copy
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, pre_tokenizers

import algpt2.data.encoding
import algpt2.data.lines
from algpt2.data.corpus import Documents, read_corpus
from algpt2.data.encoding import safe_cut, safe_pieces
from algpt2.data.packing import Blocks, TrainingOrder
from algpt2.data.tokenized_text import TokenizedText, tokenize
from algpt2.data.train_tokenizer import train_tokenizer
from algpt2.errors import InputError

ROOT = Path(__file__).parents[3]
DOCUMENTS = [
    *read_corpus("python-docs").validation, "a\n\n \n b\n\tc  \n", "\n\n", "x", "",
    "a <|endoftext|> b<|endoftext|>\n\nfoo <|endoftext|>\n x, \u00a0 \u3000 y \x1c z " * 900,
]  # fmt: skip


def in_pieces(documents, size):
    """Documents that come in pieces of one size, wherever that cuts them."""
    return Documents(
        "pieces",
        lambda: ([d[i : i + size] for i in range(0, len(d), size)] for d in documents),
        lambda: str(size),
    )


@pytest.mark.parametrize(
    "added", [None, AddedToken("<x>", rstrip=True), AddedToken("foo <"), AddedToken("<|", lstrip=True)]
)
@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_cut_documents_give_the_tokens_of_whole_ones(text_tokenizer, add_prefix_space, added, tmp_path):
    tokenizer = copy.deepcopy(text_tokenizer)
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    documents = DOCUMENTS
    if added:
        tokenizer.add_tokens([added])
        documents = [document.replace("a", "<x>") for document in DOCUMENTS]
    # The truncation and padding that a tokenizer is set to must not change the result.
    backend.enable_truncation(10)
    backend.enable_padding()
    expected = [i for d in documents for i in [*tokenizer(d, truncation=False, padding=False)["input_ids"], 0]]
    for read in (documents, Documents.of(documents), in_pieces(documents, 1000)):
        text = tokenize(read, tokenizer, cache=tmp_path)
        np.testing.assert_array_equal(text.tokens, expected)
        assert len(text.starts) == len(documents) + 1 and text.starts[-1] == len(expected)
        assert text.bytes == sum(len(document.encode()) for document in documents)


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_any_safe_cut_is_safe(text_tokenizer, add_prefix_space):
    tokenizer = copy.deepcopy(text_tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    cut = safe_cut(tokenizer.backend_tokenizer)
    for document in DOCUMENTS:
        parts = list(safe_pieces([document[:7], document[7:3000]], cut, size=1))
        assert "".join(parts) == document[:3000] and len(parts) >= len(document[:3000]) // 20
        assert [i for part in parts for i in tokenizer.encode(part)] == tokenizer.encode(document[:3000])


def test_a_stretch_without_a_place_to_cut_is_bounded(text_tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr(algpt2.data.encoding, "LONGEST_PIECE", 300)
    cut = safe_cut(text_tokenizer.backend_tokenizer)
    for document in ("x" * 5000, "a" + "\n" * 5000 + "b", "x" * 700 + " y" * 20 + "z" * 2000):
        for texts in ([document], [document[i : i + 90] for i in range(0, len(document), 90)]):
            pieces = list(safe_pieces(texts, cut, size=100))
            assert "".join(pieces) == document and max(map(len, pieces)) == 300
    monkeypatch.setattr(algpt2.data.lines, "ROW_LIMIT", 300)
    with pytest.raises(InputError, match="a line has more than 0 MiB, the most where each line is a row"):
        tokenize(in_pieces(["x" * 299 + "\n", "x y " * 90], 100), text_tokenizer, by="line", cache=tmp_path)


@pytest.mark.parametrize("size", [5, 1000])
def test_lines(text_tokenizer, tmp_path, size):
    texts = [*DOCUMENTS, "one\r\ntwo\rthree\x0bstill\u2028three\x85\x1c\x0c\r\rfour\r", "\n\r five \n\n six"]
    # Python's own idea of a line in a file.
    lines = [line.rstrip("\n") for text in texts for line in io.StringIO(text, newline=None) if line.strip()]
    for documents in (texts, Documents.of(texts), in_pieces(texts, size)):
        text = tokenize(documents, text_tokenizer, by="line", cache=tmp_path)
        assert len(text.starts) == len(lines) + 1
        for row in range(0, len(lines), 7):
            tokens = text.tokens[text.starts[row] : text.starts[row + 1]].tolist()
            assert tokens == text_tokenizer.encode(lines[row])


def test_large_vocabularies_take_more_bytes(text_tokenizer, tmp_path):
    tokenizer = copy.deepcopy(text_tokenizer)
    assert tokenize(Documents.of(["some text"]), tokenizer, cache=tmp_path).tokens.dtype == np.uint16
    tokenizer.add_tokens([f"<{i}>" for i in range(1 << 16)])
    tokens = tokenize(Documents.of(["<65535>"]), tokenizer, cache=tmp_path).tokens
    assert tokens.dtype == np.uint32 and tokens[0] == len(tokenizer) - 1 > 1 << 16


def test_a_text_is_tokenized_once(text_tokenizer, tmp_path, monkeypatch):
    reads = []

    def documents(text):
        def read():
            reads.append(text)
            return [[text * 50]]

        return Documents("text", read, lambda: text)

    monkeypatch.setenv("ALGPT2_CACHE", str(tmp_path / "new" / "cache"))
    first = tokenize(documents("one"), text_tokenizer)
    again = tokenize(documents("one"), text_tokenizer)
    np.testing.assert_array_equal(first.tokens, again.tokens)
    assert (first.words, first.bytes, reads) == (again.words, again.bytes, ["one"])
    tokenize(documents("one"), text_tokenizer, by="line")
    tokenize(documents("two"), text_tokenizer)
    other = train_tokenizer(["one two"] * 9, vocab_size=260)
    tokenize(documents("one"), other)
    assert reads == ["one", "one", "two", "one"]
    # Files that somebody damaged are not used.
    expected = np.array(first.tokens)
    for name in ("tokens.bin", "starts.bin", "text.json"):
        for damage in (
            lambda content: content[:-8],
            lambda content: content + bytes(8),
            lambda content: bytes([content[0] ^ 1]) + content[1:],
            lambda content: content[:-3] + bytes([content[-3] ^ 128]) + content[-2:],
            lambda content: b"\xff" * len(content),
        ):
            reads.clear()
            for path in (tmp_path / "new" / "cache").glob(f"*/{name}"):
                path.write_bytes(damage(path.read_bytes()))
            text = tokenize(documents("one"), text_tokenizer)
            np.testing.assert_array_equal(expected, text.tokens)
            assert (text.words, text.bytes, reads) == (first.words, first.bytes, ["one"])
    reads.clear()
    for path in (tmp_path / "new" / "cache").glob("*/text.json"):
        path.write_bytes(path.read_bytes().replace(b'"bytes": 150', b'"bytes": 151'))
    assert (tokenize(documents("one"), text_tokenizer).bytes, reads) == (150, ["one"])


@pytest.mark.parametrize("name", ["tokens.bin", "starts.bin", "text.json"])
def test_a_pipe_among_the_tokens_is_not_waited_for(name, text_tokenizer, tmp_path):
    documents = Documents("text", lambda: [["one " * 50]], lambda: "one")
    expected = np.array(tokenize(documents, text_tokenizer, cache=tmp_path).tokens)
    (path,) = tmp_path.glob(f"*/{name}")
    path.unlink()
    os.mkfifo(path)
    np.testing.assert_array_equal(tokenize(documents, text_tokenizer, cache=tmp_path).tokens, expected)
    assert path.is_file()


SCRIPT = """
import sys, time
from algpt2.data.corpus import Documents
from algpt2.errors import exit_on_error
from algpt2.data.tokenized_text import tokenize
from algpt2.data.tokenizer import load_tokenizer

def read():
    print("reading", flush=True)
    for i in range(20):
        time.sleep(float(sys.argv[3]))
        yield [f"document {i} " * 4000]

with exit_on_error("script"):
    text = tokenize(Documents("text", read, lambda: "always the same"), load_tokenizer(sys.argv[1]), cache=sys.argv[2])
    print(len(text.tokens), int(text.tokens[:].sum(dtype="int64")))
"""


@pytest.fixture
def start(text_tokenizer, tmp_path):
    text_tokenizer.save_pretrained(tmp_path / "tokenizer")
    processes = []

    def start(*arguments):
        command = [sys.executable, "-c", SCRIPT, tmp_path / "tokenizer", tmp_path / "cache", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(list(map(str, command)), cwd=ROOT, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()


@pytest.mark.slow
def test_a_kill_leaves_nothing_that_is_taken_for_whole(start, text_tokenizer, tmp_path):
    killed = start(1.0)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("cache/.*/*/tokens.bin")):
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not list(tmp_path.glob("cache/[!.]*/text.json"))

    two = [start(0.01), start(0.01)]
    found = [process.communicate(timeout=60) for process in two]
    expected = [i for n in range(20) for i in [*text_tokenizer.encode(f"document {n} " * 4000), 0]]
    # One of the two reads the documents, the other what the first has written.
    assert sorted(out.split() for out, _ in found) == sorted(
        [[str(len(expected)), str(sum(expected))], ["reading", str(len(expected)), str(sum(expected))]]
    ), found
    assert [process.returncode for process in two] == [0, 0]
    assert not list(tmp_path.glob("cache/.*"))


def test_a_full_disk(text_tokenizer, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The system refuses to write more, as it does when a disk is full.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"tokens cannot be written there \(File too large\); .* ALGPT2_CACHE"):
            tokenize(Documents.of(["word " * 50_000]), text_tokenizer, cache=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.glob(".*")) and not list(tmp_path.glob("*/"))


def test_a_cache_that_cannot_be_written(text_tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"tokens cannot be written there .* ALGPT2_CACHE"):
        tokenize(Documents.of(["text"]), text_tokenizer, cache=tmp_path / "file" / "cache")


@pytest.fixture
def other_user():
    """A directory that everybody may change, and functions that make this process another user's, and root's again."""
    if os.geteuid():
        pytest.skip("only root can become another user")
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o777)
    user, groups = (os.geteuid(), os.getegid()), os.getgroups()

    def become(user, group, groups):
        # Only root may change its groups.
        os.seteuid(0)
        os.setgroups(groups)
        os.setegid(group)
        os.seteuid(user)

    yield directory, lambda: become(65534, 65534, []), lambda: become(*user, groups)
    become(*user, groups)
    shutil.rmtree(directory)


def test_a_cache_of_two_users(other_user, text_tokenizer):
    directory, become_other, return_back = other_user
    cache, documents = directory / "cache", Documents.of(["a text that is read " * 9])
    mask = os.umask(0o002)
    try:
        expected = tokenize(documents, text_tokenizer, cache=cache).tokens.tolist()
        for path in (cache, *cache.rglob("*")):
            assert path.stat().st_mode & 0o777 == (0o775 if path.is_dir() else 0o664), path
        become_other()
        np.testing.assert_array_equal(tokenize(documents, text_tokenizer, cache=cache).tokens, expected)
        with pytest.raises(InputError, match=r"cannot be written there \(Permission denied\); .* ALGPT2_CACHE"):
            tokenize(Documents.of(["another text"]), text_tokenizer, cache=cache)
        return_back()
        for path in cache.glob("*/*"):
            path.chmod(0o600)
        become_other()
        with pytest.raises(InputError, match=r"cannot be written there \(Permission denied\); .* ALGPT2_CACHE"):
            tokenize(documents, text_tokenizer, cache=cache)
        return_back()
        cache.chmod(0o777)
        become_other()
        assert tokenize(Documents.of(["another text"]), text_tokenizer, cache=cache).words == 2
    finally:
        os.umask(mask)


def text_of(tokens):
    return TokenizedText(tokens, np.array([0, len(tokens)]), words=1, bytes=1)


def test_blocks_and_their_order():
    ids, mask = Blocks(text_of(np.arange(11)), 4).rows([1, 0])
    np.testing.assert_array_equal(ids, [[4, 5, 6, 7], [0, 1, 2, 3]])
    assert mask.all()
    with pytest.raises(InputError, match="3 tokens, fewer than one block of 4"):
        Blocks(text_of(np.arange(3)), 4)

    def order_of(sample_count, seed):
        order = TrainingOrder(block_count=10, sample_count=sample_count, seed=seed)
        assert len(order) == sample_count
        return order[np.arange(sample_count)]

    order = order_of(25, seed=3)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert list(order[:10]) != list(order[10:20])
    np.testing.assert_array_equal(order, order_of(25, seed=3))
    assert list(order) != list(order_of(25, seed=4))
    # A longer run starts as the shorter one.
    np.testing.assert_array_equal(order_of(40, seed=3)[:25], order)


def test_lines_as_blocks(text_tokenizer):
    rows = [[1, 2, 3, 4, 5], [6], [7, 8], [], [9, 10, 11, 12]]
    text = TokenizedText(np.concatenate(rows).astype(np.uint16), np.cumsum([0, *map(len, rows)]), words=1, bytes=1)
    blocks = Blocks(text, 4, packing="line", padding=99)
    # A line of one token has nothing to predict.
    assert len(blocks) == 3
    ids, mask = blocks.rows(np.array([2, 1, 0]))
    np.testing.assert_array_equal(ids, [[9, 10, 11, 12], [7, 8, 99, 99], [1, 2, 3, 4]])
    np.testing.assert_array_equal(mask, [[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
    assert ids.dtype == mask.dtype == np.int32
    with pytest.raises(InputError):
        Blocks(TokenizedText(np.array([1, 2]), np.array([0, 1, 2]), words=1, bytes=1), 4, packing="line")


def test_a_batch_across_epochs():
    order = TrainingOrder(block_count=3, sample_count=12, seed=0)
    expected = [np.random.default_rng([0, epoch]).permutation(3) for epoch in range(4)]
    np.testing.assert_array_equal(order[np.arange(1, 11)], np.concatenate(expected)[1:11])
