"""The help and the errors of every command line."""

import pytest
from command_lines import run

from algpt2.cli import Parser

COMMANDS = (
    *("algpt2_pt.train", "algpt2_pt.evaluate", "algpt2_pt.generate", "algpt2_pt.run_model"),
    *("algpt2_pt.train_tokenizer", "algpt2_tf.train", "algpt2_tf.evaluate", "algpt2_tf.generate"),
    *(
        "algpt2_tf.tfrecords",
        "algpt2.benchmark.__main__",
        "algpt2.hub",
        "algpt2.demo.__main__",
        "algpt2.run compare",
        "algpt2.tokenization train",
    ),
    *(f"convert.cli {name}" for name in ("inspect", "pt2tf", "tf2pt", "to-tf", "to-pt", "to-gpt2", "compress")),
    *("convert.cli verify", "convert.cli export"),
)


@pytest.fixture(params=COMMANDS)
def command(request, monkeypatch, capsys):
    """A command as a list of str, and its parser, which `--help` would show."""
    words, shown = request.param.split(), []
    with monkeypatch.context() as patch:
        patch.setattr(Parser, "print_help", lambda parser, file=None: shown.append(parser))
        assert run(capsys, *words, "--help")[0] == 0
    return words, *shown


def flags_of(actions):
    return [flag for action in actions for flag in action.option_strings if flag.startswith("--")]


def test_a_mistyped_flag_is_told_in_one_line_that_names_the_right_one(command, capsys):
    words, parser = command
    assert len(flags_of(parser._actions)) > 1
    for flag in flags_of(parser._actions):
        mistyped = f"{flag[:4]}x{flag[4:]}"
        code, out, error = run(capsys, *words, mistyped, "3")
        assert (code, out, error) == (
            2,
            "",
            f"{parser.prog}: error: unknown argument {mistyped}; did you mean {flag}?\n",
        )


def test_every_argument_has_its_help_and_many_have_headings(command, capsys):
    words, parser = command
    flags = flags_of(parser._actions)
    assert all(action.help for action in parser._actions)
    # The first headings are argparse's own, under which `--help` stands.
    headings = [group.title for group in parser._action_groups[2:] if flags_of(group._group_actions)]
    assert len(flags) <= 8 or len(headings) > 1
    code, out, _ = run(capsys, *words, "--help")
    assert code == 0 and all(flag in out for flag in flags) and all(f"\n{title}:\n" in out for title in headings)


@pytest.mark.parametrize("name", ["algpt2_pt.generate", "algpt2_tf.generate"])
def test_a_prompt_may_stand_behind_the_flags(name, tmp_path, capsys):
    code, _, error = run(capsys, name, tmp_path / "none", "--max-new-tokens", 5, "The value of")
    assert code == 2 and "none: no such" in error
    code, _, error = run(capsys, name, tmp_path / "none", "--max-new-tokens", 5, "The value", "of")
    assert code == 2 and "unrecognized arguments: The value of" in error


def test_several_arguments_may_stand_around_the_flags(tmp_path, capsys, monkeypatch):
    taken = []
    monkeypatch.setattr("algpt2.training.compare.compare", taken.append)
    assert run(capsys, "algpt2.run", "compare", "a", "--output-dir", "b", "c", "d")[0] == 0
    assert (taken[0].runs, taken[0].output_dir) == (["a", "c", "d"], "b")


@pytest.mark.parametrize("flag", ["--framewrk", "--framewrk=tensorflow", "--frame"])
def test_a_mistyped_framework_is_told(flag, capsys):
    code, _, error = run(capsys, "algpt2.__main__", "train", flag)
    assert (code, error.count("\n")) == (2, 1) and "did you mean --framework?" in error
    code, _, error = run(capsys, "algpt2.__main__", "trian")
    assert (code, error.count("\n")) == (2, 1) and "did you mean train?" in error
