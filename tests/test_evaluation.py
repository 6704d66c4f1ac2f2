"""Evaluation on the command line, in both frameworks, from the same weights."""

import json
import math

import pytest
import torch
from command_lines import FRAMEWORKS, run
from models import pytorch_model, random_weights

from algpt2 import layer_schedule
from algpt2.data.corpus import read_corpus

TEXT = "".join(read_corpus("python-docs").validation)[:3000]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@torch.no_grad()
def transformers_losses(model, rows):
    """The losses that transformers' own model gives for (ids, first counted place) rows, one at a time."""
    total = count = 0
    for ids, first in rows:
        ids = torch.tensor([ids])
        labels = ids.clone()
        labels[:, :first] = -100
        counted = ids.shape[1] - max(first, 1)
        total += model(ids, labels=labels).loss.item() * counted
        count += counted
    return total, count


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["stream", "line", "sliding"])
def test_protocols_as_transformers_computes_them(gpt2, text_file, text_tokenizer, protocol, capsys):
    directory, model = gpt2
    length = 20
    tokens = [*text_tokenizer.encode(TEXT), 0]
    if protocol == "stream":
        rows = [(tokens[i : i + length], 1) for i in range(0, len(tokens), length)]
    elif protocol == "line":
        lines = [text_tokenizer.encode(line) for line in TEXT.split("\n") if line.strip()]
        rows, tokens = [(line[:length], 1) for line in lines], [token for line in lines for token in line]
    else:
        # As in transformers' guide to the perplexity of fixed-length models, with stride 8.
        rows, before = [], 0
        for start in range(0, len(tokens), 8):
            end = min(start + length, len(tokens))
            rows.append((tokens[start:end], max(1, before - start)))
            before = end
            if end == len(tokens):
                break
    total, count = transformers_losses(model, [row for row in rows if len(row[0]) > 1])
    options = ["--length", length, "--protocol", protocol, "--json"]
    for framework in FRAMEWORKS:
        extra = ["--stride", 8] if protocol == "sliding" else []
        arguments = (directory, "--dataset", text_file, *options, *extra)
        code, out, err = run(capsys, f"algpt2_{framework}.evaluate", *arguments)
        assert code == 0, err
        found = json.loads(out)
        assert found["protocol"] == protocol and found["tokens"] == count
        assert math.isclose(found["loss"], total / count, rel_tol=1e-5)
        assert math.isclose(found["perplexity"], math.exp(total / count), rel_tol=1e-4)
        words, size = len(TEXT.split()), len(TEXT.encode())
        assert math.isclose(found["word_perplexity"], math.exp(found["loss"] * len(tokens) / words), rel_tol=1e-9)
        assert math.isclose(found["bits_per_byte"], found["loss"] * len(tokens) / math.log(2) / size, rel_tol=1e-9)
        shown = run(capsys, f"algpt2_{framework}.evaluate", *[a for a in arguments if a != "--json"])[1]
        assert f"protocol {protocol}, length 20" in shown and f"perplexity {found['perplexity']:.4f}" in shown


@pytest.mark.slow
def test_depths_are_the_same_block_applied_as_often(shared, text_file, tmp_path, capsys, monkeypatch):
    directory, config = shared
    monkeypatch.chdir(tmp_path)
    records = {}
    for framework in FRAMEWORKS:
        code, out, err = run(
            capsys, f"algpt2_{framework}.evaluate", directory, "--dataset", text_file, "--depth", "5,1,3", "--json"
        )
        assert code == 0, err
        records[framework] = json.loads(out)
        assert (tmp_path / "depth-perplexity.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "depth-perplexity.png").unlink()
    for pt, tf in zip(records["pt"], records["tf"], strict=True):
        assert pt["depth"] == tf["depth"]
        assert math.isclose(pt["loss"], tf["loss"], rel_tol=1e-5)
    assert [row["depth"] for row in records["pt"]] == [5, 1, 3]
    # A model that was built with that schedule, from the same weights.
    deep = type(config).from_dict(config.to_dict(), layer_schedule=layer_schedule("full", 5))
    deep = pytorch_model(deep, random_weights(config, "float32"))
    found = {}
    for depth, options in ((5, ["--depth", 5]), (3, [])):
        found[depth] = json.loads(
            run(capsys, "algpt2_pt.evaluate", directory, "--dataset", text_file, "--json", *options)[1]
        )["loss"]
    deep.save_pretrained(tmp_path / "deep")
    for file in directory.glob("tokenizer*"):
        (tmp_path / "deep" / file.name).write_bytes(file.read_bytes())
    expected = json.loads(run(capsys, "algpt2_pt.evaluate", tmp_path / "deep", "--dataset", text_file, "--json")[1])
    assert math.isclose(expected["loss"], found[5], rel_tol=1e-6)
    assert records["pt"][0]["loss"] == found[5] != found[3] == records["pt"][2]["loss"]


def test_several_depths_as_a_table_and_a_named_figure(shared, text_file, tmp_path, capsys):
    figure = tmp_path / "new" / "curve.svg"
    code, out, _ = run(
        capsys, "algpt2_pt.evaluate", shared[0], "--dataset", text_file, "--depth", "2,3", "--figure", figure,
        "--protocol", "line",
    )  # fmt: skip
    assert code == 0 and "<svg" in figure.read_text()
    assert "perplexity (line)" in out and [line.split()[1] for line in out.splitlines()[4:]] == ["2", "3"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such"], "no/such: no such directory"),
        (["RUN", "--length", "64"], "--length 64 must be"),
        (["RUN", "--dataset", "no/such.txt"], "no/such.txt: no such file"),
        (["RUN", "--stride", "3"], "--stride is for --protocol sliding"),
        (["RUN", "--protocol", "sliding", "--stride", "33"], "--stride 33 must be 1 to the tokens of a row, 32"),
        (["RUN", "--depth", "2,x"], "invalid list of depths value: '2,x'"),
        (["RUN", "--depth", "0"], "invalid list of depths value: '0'"),
        (["RUN", "--figure", "a.png"], "give several depths"),
        (["RUN", "--depth", "2,3", "--figure", "a.doc"], "--figure a.doc: must be a file that ends in .png"),
        (["GPT2", "--depth", "3"], "GPT2"),
    ],
)
def test_wrong_evaluations(shared, gpt2, framework, arguments, message, capsys):
    directories = {"RUN": str(shared[0]), "GPT2": str(gpt2[0])}
    arguments = [directories.get(argument, argument) for argument in arguments]
    code, _, err = run(capsys, f"algpt2_{framework}.evaluate", *arguments)
    assert code == 2 and directories.get(message, message) in err and "Traceback" not in err
