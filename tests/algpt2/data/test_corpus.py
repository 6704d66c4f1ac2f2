"""Where text comes from, and how it is split."""

import gzip
import io
import json
import pydoc_data.topics
import tracemalloc

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from algpt2.data import files
from algpt2.data.corpus import Documents, TextOptions, read_corpus, read_documents
from algpt2.data.hub_datasets import candidates
from algpt2.data.tokenized_text import tokenize
from algpt2.errors import InputError


def texts(corpus):
    return list(corpus.train), list(corpus.validation)


def test_python_docs_are_the_topics_split_in_two():
    train, validation = texts(read_corpus("python-docs"))
    topics = set(pydoc_data.topics.topics.values())
    assert set(train) | set(validation) == topics
    assert not set(train) & set(validation)
    assert 0.03 < sum(map(len, validation)) / sum(map(len, topics)) < 0.2
    assert list(read_documents("python-docs")) == validation
    assert list(read_documents("python-docs", split="train,validation")) == train + validation


def test_files_and_globs(tmp_path):
    (tmp_path / "b.txt").write_text("second\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("first ü\r\n" * 40, encoding="utf-8")
    corpus = read_corpus(str(tmp_path / "*.txt"), validation=str(tmp_path / "b.txt"))
    assert texts(corpus) == (["first ü\n" * 40, "second\n"], ["second\n"])
    (tmp_path / "c.txt").write_text("third\n" * 10, encoding="utf-8")
    assert texts(read_corpus(str(tmp_path / "[ac].txt"))) == (["first ü\n" * 40, "third\n" * 8], ["third\n" * 2])
    assert texts(read_corpus(str(tmp_path / "a.txt"))) == (["first ü\n" * 38], ["first ü\n" * 2])
    assert list(read_documents(str(tmp_path / "a.txt"))) == ["first ü\n" * 40]


def write_rows(path, rows):
    if path.suffix.lower() == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")


def test_every_format_gives_the_same_documents(tmp_path):
    rows = [{"id": i, "text": f"document {i}\nof two lines, näive ☃" if i != 3 else None} for i in range(600)]
    expected = [row["text"] for row in rows if row["text"]]
    for name in ("a.jsonl", "a.parquet"):
        path = tmp_path / name
        write_rows(path, rows)
        zipped = tmp_path / f"zipped-{name}.gz"
        zipped.write_bytes(gzip.compress(path.read_bytes()))
        assert list(read_documents(str(path))) == list(read_documents(str(zipped))) == expected
    whole = "".join(expected)
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(whole.encode()))
    assert list(read_documents(str(tmp_path / "b.md.gz"))) == [whole]
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "c.raw").write_text(whole, encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\xff")
    assert list(read_documents(str(tmp_path))) == [*expected * 2, whole, whole, *expected * 2]
    assert set(read_documents(str(tmp_path / "a.jsonl"), TextOptions("text"))) == set(expected)


def test_names_tell_formats_in_small_and_capital_letters(tmp_path):
    rows = [{"text": "one\nline", "id": 1}, {"text": "[two]"}, {"text": "three, ☃"}]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    expected = [row["text"] for row in rows]
    for name in ("B.JSONL", "b.ndjson", "b.NDJson", "b.json", "B.JSON"):
        (tmp_path / name).write_text(lines, encoding="utf-8")
        assert list(read_documents(str(tmp_path / name))) == expected
    for text in (json.dumps(rows), json.dumps(rows, indent=2), json.dumps(rows, indent=2)[1:-1], f" \n{lines}\r\n"):
        (tmp_path / "b.json").write_text(text)
        assert list(read_documents(str(tmp_path / "b.json"))) == expected
    (tmp_path / "b.jsonl").write_bytes(lines.replace("\n", "\r").encode())
    assert list(read_documents(str(tmp_path / "b.jsonl"))) == expected
    write_rows(tmp_path / "D.PARQUET", rows)
    (tmp_path / "F.JSONL.GZ").write_bytes(gzip.compress(lines.encode()))
    for name in ("D.PARQUET", "F.JSONL.GZ"):
        assert list(read_documents(str(tmp_path / name))) == expected
    (tmp_path / "Z.TXT").write_text("text")
    # In a folder, a .json file may be anything.
    assert list(read_documents(str(tmp_path))) == [*expected * 3, "text", *expected * 3]


def test_a_mark_at_the_start_is_no_text(tmp_path, monkeypatch):
    text = "first line\nsecond \ufeff line\n" * 20
    row = json.dumps({"text": text}) + "\n"
    for name, content in {
        "a.txt": "\ufeff" + text,
        "a.jsonl": "\ufeff" + row,
        "b.jsonl": json.dumps({"text": "\ufeff" + text}),
        "a.json": "\ufeff" + row,
        "b.json": f"\ufeff[{row}]",
    }.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
        for path in (tmp_path / name, tmp_path / f"{name}.gz"):
            assert list(read_documents(str(path))) == [text], path
    monkeypatch.setattr(files, "BLOCK", 2)
    assert list(read_documents(str(tmp_path / "a.txt"))) == [text]


@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_the_held_out_lines_are_those_of_python(tmp_path, ending):
    """Universal newlines, as `open` has them: nothing else ends a line."""
    text = "".join(
        f"line {i}\u2028\x85\x1c\x0c{end}" for i, end in zip(range(60), ["\n", "\r\n", "\r"] * 20, strict=True)
    )
    path = tmp_path / f"a.{ending}"
    path.write_bytes(text.encode() if ending == "txt" else json.dumps({"text": text}).encode())
    [train], [held_out] = texts(read_corpus(str(path)))
    assert train + held_out == (text if ending == "jsonl" else text.replace("\r\n", "\n").replace("\r", "\n"))
    lines = list(io.StringIO(text, newline=None))
    assert list(io.StringIO(held_out, newline=None)) == lines[57:]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": "%s"}' % ("x" * 5000), "line 2: longer than 0 MiB, the most for a row"),
        ("a.jsonl", '{"text": "%s"}' % ("\\u2603" * 200), "a line of 1200"),
        (
            "a.json",
            '[{"text": "a"}, {"text": "%s"}]' % ("x" * 90_000),
            "row 2: not JSON within 0 MiB, the most for a row",
        ),
        ("a.json", '[{"text": "a"}, {"text": "%s"}]' % ("x" * 5000), "row 2: longer than 0 MiB, the most for a row"),
        ("a.txt", "x" * 90_000, "more than 0 MiB without a space or a line end; is this text"),
        ("a.parquet", [{"text": "x" * 5000}] * 3, "row 1: longer than 0 MiB"),
        ("a.jsonl", '{"text": "a"}\n' + "[" * 3500, "line 2: not JSON .*recursion"),
        ("a.json", "[" * 100_000, "row 1: not JSON .*recursion"),
        ("a.json", '[{"text": "a"}', "row 2: not JSON .*; expected objects, or one array of them"),
        ("a.json", '[{"text": "a"}]]', "row 2: not JSON"),
        ("a.json", '{"text": "a"}]', "row 2: not JSON"),
        ("a.json", "[1]", "row 1: expected an object, found int"),
        ("a.json", " ", "the file holds no text"),
        ("a.json", '{"text": %s}' % ("1" * 5000), "row 1: not JSON .*digits"),
    ],
)
def test_the_limits_of_rows(tmp_path, monkeypatch, name, content, message):
    monkeypatch.setattr(files, "BLOCK", 1000)
    monkeypatch.setattr(files, "ROW_LIMIT", 4000)
    path = tmp_path / name
    path.write_text(content) if isinstance(content, str) else write_rows(path, content)
    if message == "a line of 1200":
        assert list(read_documents(str(path))) == ["☃" * 200]
        return
    with pytest.raises(InputError, match=message) as error:
        list(read_documents(str(path)))
    assert len(str(error.value)) < 400


def test_a_huge_row_in_a_small_file_takes_little_memory(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(b'{"text": "')
        for _ in range(200):
            file.write(b"a" * (1 << 20))
        file.write(b'"}')
    assert (tmp_path / "a.jsonl.gz").stat().st_size < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="line 1: longer than 32 MiB, the most for a row"):
            list(read_documents(str(tmp_path / "a.jsonl.gz")))
        assert tracemalloc.get_traced_memory()[1] < 100 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", None, "a.txt: no such file"),
        ("a.txt", b"", "the file holds no text"),
        ("a.txt", b" \n\n", "the file holds no text"),
        ("a.txt", b"ok\xff\xfe", r"not UTF-8 text \(byte 2\)"),
        ("a.txt", b"ok" * 5000 + b"\xe2", r"not UTF-8 text \(byte 10000\)"),
        ("a.txt", b"one", "few"),
        ("a.txt.gz", b"no gzip", "a.txt.gz: a damaged gzip file"),
        ("a.txt.gz", gzip.compress(b"some text " * 9000)[:-40], "a.txt.gz: a damaged gzip file"),
        ("a.jsonl", b'{"text": "good"}\n\n{"text": ', "a.jsonl, line 3: not JSON"),
        ("a.jsonl", b'{"text": "good"}\n["text"]', "a.jsonl, line 2: expected an object, found list"),
        ("a.jsonl", b'{"text": "good"}\n{"body": "x", "id": 1}', "line 2: no column 'text'; .* one of body, id"),
        ("a.jsonl", b'{"text": 5}', "line 1: column 'text' holds int"),
        ("a.jsonl", rb'{"text": "\ud800"}', "line 1: half of a surrogate pair"),
        ("a.jsonl", b'{"text": "\xff"}', "line 1: not JSON"),
        ("a.jsonl", b'{"text": " "}', "the file holds no text"),
        ("a.parquet", b"PAR1", "a.parquet: not readable as Parquet"),
        ("a.parquet", [{"body": "x"}], "a.parquet, row 1: no column 'text'; .* one of body"),
        ("a.parquet", [{"text": 5}], "a.parquet, row 1: column 'text' holds int"),
    ],
)
def test_wrong_files(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, list):
        write_rows(path, content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_corpus(str(path))


def test_parquet_with_checksums(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.Table.from_pylist([{"text": f"line number {number}"} for number in range(50)])
    parquet.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    assert len(list(read_corpus(str(path)).train)) > 1
    content = path.read_bytes()
    path.write_bytes(content.replace(b"line number 17", b"line number 71"))
    with pytest.raises(InputError, match=r"a\.parquet: (not readable as Parquet|cannot be read)"):
        list(read_corpus(str(path)).train)


def test_wrong_places(tmp_path):
    with pytest.raises(InputError, match=r"no .txt, .* file in this folder"):
        read_corpus(str(tmp_path))
    with pytest.raises(InputError, match="no such file"):
        read_corpus(str(tmp_path / "*"))
    (tmp_path / "a.txt").write_text("text\n" * 90)
    with pytest.raises(InputError, match="files have no splits, found 'test'"):
        read_documents(str(tmp_path / "a.txt"), split="test")
    (tmp_path / "a.txt").write_text("text\n" * 90 + "\n" * 30)
    with pytest.raises(InputError, match=r"a.txt \(held out\): there is no text"):
        list(read_corpus(str(tmp_path / "a.txt")).validation)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_pieces_of_a_long_document_are_the_document(tmp_path, monkeypatch, block):
    monkeypatch.setattr(files, "BLOCK", block)
    text = "".join(f"line {i} é☃ \n" + "\n" * (i % 3) for i in range(100)) + "words " * 60 + "end"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    [pieces] = map(list, read_documents(str(tmp_path / "a.txt")).pieces())
    assert len(pieces) > 5 and "".join(piece.text for piece in pieces) == text
    assert sum(piece.words for piece in pieces) == len(text.split())
    assert sum(piece.bytes for piece in pieces) == len(text.encode())
    [train], [held_out] = texts(read_corpus(str(tmp_path / "a.txt")))
    assert train + held_out == text


def test_the_last_lines_of_a_text_in_pieces_are_held_out(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK", 100)
    lines = [f"line {i} é☃ \n" for i in range(90)]
    (tmp_path / "a.txt").write_text("".join(lines), encoding="utf-8")
    assert texts(read_corpus(str(tmp_path / "a.txt"))) == (["".join(lines[:-4])], ["".join(lines[-4:])])


def test_detokenizer_and_control_code(tmp_path, text_tokenizer):
    (tmp_path / "a.jsonl").write_text('{"text": " one , two @-@ part \\n"}\n{"text": " = T = \\n"}\n')
    options = TextOptions(detokenize="wikitext", control_code="<|wiki|> ")
    documents = read_documents(str(tmp_path / "a.jsonl"), options)
    assert list(documents) == ["<|wiki|> one, two-part\n", "<|wiki|> = T =\n"]
    plain = read_documents(str(tmp_path / "a.jsonl"))
    # Words and bytes are counted in the published text, before it is detokenized.
    text, source = tokenize(documents, text_tokenizer), " one , two @-@ part \n = T = \n"
    assert (text.words, text.bytes) == (len(source.split()), len(source))
    assert len({documents.fingerprint(), plain.fingerprint(), Documents.of(list(plain)).fingerprint()}) == 3


def test_fingerprints_follow_the_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("some text\n" * 40)
    before = [part.fingerprint() for part in (read_documents(str(path)), *vars(read_corpus(str(path))).values())]
    assert len(set(before)) == 3
    assert read_documents(str(path)).fingerprint() == before[0]
    path.write_text("some test\n" * 40)
    assert read_documents(str(path)).fingerprint() != before[0]


@pytest.fixture
def hub(monkeypatch):
    """A hub with three data sets."""
    lines = ["", " = Title = \n", "", " some words \n"]

    def split(rows, column="text"):
        return datasets.Dataset.from_dict({column: rows, "label": list(range(len(rows)))})

    stored = {
        ("Salesforce/wikitext", "wikitext-2-v1"): {"train": split(lines * 9), "test": split(lines[:2])},
        ("owner/stories", None): {"train": split([f"story {i}" for i in range(40)])},
        ("owner/stories", "long"): {"train": split([f"long story {i}" for i in range(2000)])},
        ("cnn_dailymail", "3.0.0"): {
            "train": split(["news"] * 3, "article"), "validation": split(["old", " ", "older"], "article"),
        },
    }  # fmt: skip

    def load_dataset(repository, configuration=None, streaming=False):
        if (repository, configuration) not in stored:
            raise datasets.exceptions.DatasetNotFoundError(f"{repository} is not there")
        splits = stored[repository, configuration]
        if streaming:
            splits = {name: split.to_iterable_dataset() for name, split in splits.items()}
        return splits

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_data_sets(hub, streaming):
    options = TextOptions(streaming=streaming)
    article = "\n = Title = \n\n some words \n"
    names = ("wikitext-2-v1", "wikitext/wikitext-2-v1", "Salesforce/wikitext/wikitext-2-v1")
    for name in names:
        assert texts(read_corpus(name, options=options)) == ([article * 9], ["\n = Title = \n"])
    assert len({read_documents(name, options).fingerprint() for name in (*names, *names)}) == 1
    assert list(read_documents(names[0], options, "train,test")) == [article * 9, "\n = Title = \n"]
    assert list(read_documents(names[0], TextOptions(streaming=streaming, detokenize="wikitext"))) == ["\n= Title =\n"]

    news = TextOptions("article", streaming)
    assert texts(read_corpus("cnn_dailymail/3.0.0", options=news)) == (["news"] * 3, ["old", "older"])

    train, held_out = texts(read_corpus("owner/stories/long", options=options))
    assert sorted(train + held_out) == sorted(f"long story {i}" for i in range(2000))
    assert len(held_out) == (1000 if streaming else 100)
    assert list(read_documents("owner/stories/long", options)) == held_out
    parts = vars(read_corpus("owner/stories/long", options=options)).values()
    assert len({part.fingerprint() for part in parts}) == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("owner/nothing", {}, "owner/nothing: no such file, and no such data set on the Hugging Face hub"),
        ("cnn_dailymail/3.0.0", {}, "split train, row 1: no column 'text'; give --text-column, one of article, label"),
        ("owner/stories", {"text_column": "label"}, "row 1: column 'label' holds int"),
        ("owner/stories", {"streaming": True}, "split train: there is no text"),
    ],
)
def test_wrong_hub_data_sets(hub, name, options, message):
    with pytest.raises(InputError, match=message):
        list(read_corpus(name, options=TextOptions(**options)).train)


def test_an_unknown_split(hub):
    with pytest.raises(InputError, match="owner/stories: has no split 'dev'; it has train"):
        read_documents("owner/stories", split="dev")


@pytest.mark.parametrize("name", ["wikitext-103-raw-v1", "openwebtext", "owner/name", "owner/name/configuration"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_out_of_reach(name, streaming):
    """Without a stand-in: the tests run with HF_HUB_OFFLINE=1."""
    with pytest.raises(InputError, match=r"the Hugging Face hub cannot be reached .* give local files") as error:
        read_corpus(name, options=TextOptions(streaming=streaming))
    assert "\n" not in str(error.value)


def test_local_files_win_over_the_hub(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wikitext-2-v1").mkdir()
    (tmp_path / "wikitext-2-v1" / "a.txt").write_text("mine")
    assert list(read_documents("wikitext-2-v1")) == ["mine"]


def test_names_of_hub_data_sets():
    assert candidates("wikitext-103-v1") == [("Salesforce/wikitext", "wikitext-103-v1")]
    assert candidates("Salesforce/wikitext/wikitext-2-raw-v1") == [("Salesforce/wikitext", "wikitext-2-raw-v1")]
    assert candidates("openwebtext") == [("openwebtext", None)]
    assert candidates("Skylion007/openwebtext")[0] == ("Skylion007/openwebtext", None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("tfrecords.json", "merges.txt"), "holds TFRecords, which train and evaluate of algpt2_tf read"),
        (("config.json", "tokenizer.json", "merges.txt", "README.md"), "is the directory of a model; give a text"),
    ],
)
def test_folders_of_tokens_and_of_models_are_no_text(names, message, tmp_path):
    for name in names:
        (tmp_path / name).write_text("a b")
    with pytest.raises(InputError, match=message):
        read_corpus(str(tmp_path))
