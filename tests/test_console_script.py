"""The console script `algpt2`: every command of the project by one name."""

import pytest
from command_lines import run
from models import save_checkpoint

import algpt2.__main__ as console
from algpt2.checkpoints.config_file import read_config

HELP = {
    ("train",): "python -m algpt2_pt.train",
    ("train", "--framework", "tensorflow"): "python -m algpt2_tf.train",
    ("evaluate", "--framework", "pytorch"): "python -m algpt2_pt.evaluate",
    ("generate", "--framework", "tensorflow"): "python -m algpt2_tf.generate",
    ("benchmark",): "python -m algpt2.benchmark",
    ("compare",): "python -m algpt2.run compare",
    ("convert",): "python -m convert",
    ("convert", "pt2tf"): "python -m convert pt2tf",
    ("tokenization", "train"): "python -m algpt2.tokenization train",
    ("tfrecords",): "python -m algpt2_tf.tfrecords",
    ("demo",): "python -m algpt2.demo",
    ("hub",): "python -m algpt2.hub",
}


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_every_command_is_there(arguments, capsys):
    code, out, _ = run(capsys, console, *arguments, "--help")
    assert code == 0 and out.startswith(f"usage: {HELP[arguments]} ")
    assert {name for name, *_ in HELP} == console.COMMANDS.keys()


def test_arguments_go_to_the_command(tmp_path, capsys):
    code, out, _ = run(capsys, console, "convert", "inspect", save_checkpoint(tmp_path / "model"))
    assert code == 0 and "ALGPT2 (PyTorch)" in out
    code, _, error = run(capsys, console, "evaluate", "--framework", "pytorch", tmp_path / "nothing")
    assert code == 2 and "nothing: no such" in error


def test_a_framework_that_is_missing_is_one_line(capsys, monkeypatch):
    monkeypatch.setitem(console.FRAMEWORKS, "tensorflow", console.FRAMEWORKS["tensorflow"]._replace(package="absent"))
    code, _, error = run(capsys, console, "train", "--framework", "tensorflow")
    assert code == 2 and error.startswith("algpt2: error: absent.train cannot be imported") and error.count("\n") == 1


@pytest.mark.slow
def test_shipped_configurations_are_known_by_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a line of some words\n" * 200)
    arguments = ("--config", "small-shared", "--dataset", "text.txt", "--vocab-size", 260, "--length", 8)
    code, _, error = run(
        capsys, console, "train", *arguments, "--max-steps", 1, "--batch-size", 1, "--output-dir", "run"
    )
    assert code == 0, error
    assert read_config("run").n_embd == 256 and read_config("run").layer_schedule == [0] * 6
