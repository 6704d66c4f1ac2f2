"""Runs side by side: the figure, the table, and directories that are no runs."""

import argparse
import csv
import json
import math
import re

import pytest
from matplotlib.figure import Figure

from algpt2 import ALGPT2Config, parameter_count
from algpt2.data.train_tokenizer import train_tokenizer
from algpt2.errors import InputError
from algpt2.run import add_arguments
from algpt2.training.compare import compare, labels, read_history
from algpt2.training.figure import draw_perplexity


def records(losses=(4.0, 3.0, 3.5), tokens=64):
    result = []
    for step, loss in enumerate(losses, start=1):
        base = {"step": step * 10, "tokens": step * 10 * tokens}
        speed = {"learning_rate": 1e-3, "tokens_per_second": 1000.0 * step, "flops_share": 0.25}
        result.append({**base, "train_loss": loss, "train_perplexity": math.exp(loss), **speed})
        result.append({**base, "eval_loss": loss + 0.1, "eval_perplexity": math.exp(loss + 0.1)})
    return result


def make_run(directory, history=None, vocab_size=260, **arguments):
    directory.mkdir(parents=True)
    (directory / "arguments.json").write_text(json.dumps({"dataset": "python-docs", **arguments}))
    ALGPT2Config.from_preset("algpt2-tiny", vocab_size=vocab_size).save_pretrained(directory)
    train_tokenizer(["low lower lowest"] * 9, vocab_size).save_pretrained(directory)
    lines = [json.dumps(record) for record in (records() if history is None else history)]
    (directory / "history.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return directory


def run_compare(*arguments):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    compare(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def drawn(monkeypatch):
    """The figures as they were when they were saved."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    return figures


def test_table_of_two_runs(tmp_path, capsys):
    pt = make_run(tmp_path / "pt", framework="pytorch")
    tf = make_run(tmp_path / "tf", records((5.0, 2.0, 1.0, 0.5), tokens=32))
    run_compare(pt, tf, "--output-dir", tmp_path / "out")
    with (tmp_path / "out" / "comparison.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["run"], first["framework"], second["run"], second["framework"]) == ("pt", "pytorch", "tf", "")
    assert int(first["parameters"]) == parameter_count(ALGPT2Config.from_preset("algpt2-tiny", vocab_size=260))
    assert (first["steps"], first["tokens"], first["protocol"]) == ("30", "1920", "stream")
    assert float(first["tokens_per_second"]) == 2000 and float(second["tokens_per_second"]) == 2500
    assert math.isclose(float(first["best_eval_perplexity"]), math.exp(3.1)) and first["best_step"] == "20"
    assert math.isclose(float(first["last_eval_perplexity"]), math.exp(3.6)) and first["last_step"] == "30"
    assert math.isclose(float(first["last_train_perplexity"]), math.exp(3.5))
    assert math.isclose(float(second["best_eval_perplexity"]), math.exp(0.6)) and second["best_step"] == "40"
    table = re.sub(" +", " ", (tmp_path / "out" / "comparison.md").read_text())
    assert "| pt | pytorch |" in table and f"| {math.exp(3.1):.2f} | 20 | {math.exp(3.6):.2f} | 30 |" in table
    assert "comparable" not in table and "tokenizers" not in table
    assert re.sub(" +", " ", capsys.readouterr().out).startswith(table)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 258}, "different tokenizers"),
        ({"eval_protocol": "line"}, "different evaluation protocols"),
        ({"length": 7}, "different block lengths"),
        ({"validation": "other.txt"}, "different evaluation texts"),
    ],
)
def test_runs_that_are_not_comparable(changes, message, tmp_path, capsys):
    run_compare(make_run(tmp_path / "a"), make_run(tmp_path / "b", **changes), "--output-dir", tmp_path / "out")
    assert message in capsys.readouterr().out
    assert message in (tmp_path / "out" / "comparison.md").read_text()


def test_the_state_of_a_tokenizer_is_not_its_vocabulary(tmp_path, capsys):
    one, other = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    stored = json.loads((other / "tokenizer.json").read_text())
    stored["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    (other / "tokenizer.json").write_text(json.dumps(stored))
    run_compare(one, other, "--output-dir", tmp_path / "out")
    assert "tokenizers" not in capsys.readouterr().out


def test_figure_of_several_runs(tmp_path, drawn):
    runs = [make_run(tmp_path / name, records((n + 1.0, n + 0.5))) for n, name in enumerate(("a", "b", "c"))]
    only_training = [record for record in records() if "train_loss" in record]
    runs.append(make_run(tmp_path / "d", only_training, eval_protocol="line"))
    run_compare(*runs, "--output-dir", tmp_path / "out")
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    steps, tokens = drawn[0].axes
    assert [line.get_label() for line in steps.lines] == ["a", "b", "c", "d (train)"]
    assert list(steps.lines[1].get_xdata()) == [10, 20] and list(tokens.lines[1].get_xdata()) == [640, 1280]
    assert list(steps.lines[1].get_ydata()) == list(tokens.lines[1].get_ydata()) == [math.exp(2.1), math.exp(1.6)]
    assert len({line.get_color() for line in steps.lines}) == 4
    assert "stream, line" in steps.get_ylabel()


def test_figure_of_one_run(tmp_path, drawn):
    history = [*records(), {"step": 40, "tokens": 2560, "train_loss": 800.0, "train_perplexity": math.inf}]
    draw_perplexity({"one": history}, tmp_path / "perplexity.png")
    assert [line.get_label() for line in drawn[0].axes[0].lines] == ["validation", "train"]
    assert all(list(line.get_xdata()) == [10, 20, 30] for line in drawn[0].axes[0].lines)
    assert [path.name for path in tmp_path.iterdir()] == ["perplexity.png"]


def test_more_runs_than_colors_are_told_apart(tmp_path, drawn):
    draw_perplexity({str(n): records() for n in range(23)}, tmp_path / "many.png")
    looks = {(line.get_color(), line.get_linestyle()) for line in drawn[0].axes[0].lines}
    assert len(looks) == 23


def test_labels(tmp_path):
    paths = ["x/runs/a", "y/runs/a/", "x/runs/b", "/a"]
    assert labels(paths) == ["x/runs/a", "y/runs/a", "b", "/a"]
    with pytest.raises(InputError, match="given twice"):
        labels(["x/a", "./x/a/"])


@pytest.mark.parametrize("rest", ['{"step": 40, "tok', '{"step": 40}'[:-1], "\0\0\0", "\ufffd"])
def test_a_line_cut_off_by_a_crash_is_ignored(rest, tmp_path):
    run = make_run(tmp_path / "run")
    with (run / "history.jsonl").open("a") as file:
        file.write(rest)
    assert read_history(run / "history.jsonl") == records()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no records yet"),
        ('{"step": 1', "no records yet"),
        ('{"step": 1\n{"step": 2, "tokens": 3}\n', "line 1: not readable as JSON"),
        ("[]\n", "line 1 is no record"),
        ('{"step": 1}\n', "line 1 is no record"),
        ('{"step": 1, "tokens": 2, "eval_perplexity": "low"}\n', "eval_perplexity is 'low'; expected a number"),
    ],
)
def test_broken_histories(content, message, tmp_path):
    run = make_run(tmp_path / "run")
    (run / "history.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        run_compare(run, "--output-dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_directories_that_are_no_runs(tmp_path):
    run = make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for name, message in (("none", "no such directory"), ("empty", "not a run directory")):
        with pytest.raises(InputError, match=message):
            run_compare(run, tmp_path / name, "--output-dir", tmp_path / "out")
    for file in ("arguments.json", "config.json", "tokenizer.json"):
        kept = (run / file).read_text()
        (run / file).write_text(kept[:-20])
        with pytest.raises(InputError, match=file):
            run_compare(run, "--output-dir", tmp_path / "out")
        (run / file).write_text(kept)
    (run / "history.jsonl").unlink()
    with pytest.raises(InputError, match=r"history\.jsonl: no such file; give the directory of a run"):
        run_compare(run)
    assert not (tmp_path / "out").exists()
