"""The README, followed from top to bottom in a fresh directory."""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from command_lines import program_of, run

from algpt2.data.corpus import read_corpus

ROOT = Path(__file__).parent.parent
# What is not run, and why.
NOT_RUN = {
    "make demo": "installs and trains for minutes; its commands are those below",
    "make test": "it would run this test",
    "pip install -e '.[pt]'": "installs",
    "pip install -e '.[tf]'": "installs",
    "pip install -e '.[all]'": "installs",
    "python -m algpt2.demo runs/pt runs/tf": "serves a page until it is stopped (tests/algpt2/demo)",
    "python -m algpt2.hub runs/pt my-name/my-model": "uploads (tests/algpt2/test_hub.py)",
}
# What is written otherwise, so that it takes seconds.
SHORTER = {
    "--dataset python-docs": "--dataset text.txt",
    "data/wikitext-2/wiki.train.tokens": "text.txt",
    "data/wikitext-2/wiki.valid.tokens": "text.txt",
    " --epochs 2": "",
    "--save-steps 100": "--save-steps 2",
    "--stride 64": "--stride 8",
    "--max-new-tokens 500": "--max-new-tokens 50",
    "--draft-depth 2": "--draft-depth 1",
    "algpt2.benchmark runs/pt": "algpt2.benchmark runs/pt --rounds 1 --new-tokens 4",
    "compress openai-community/gpt2": "compress runs/pt",
    "--sharing cycle:3 --depth-lora-rank 64": "--sharing full --depth-lora-rank 4",
}
# What is added to every command of training; a run that goes on has it from its record.
SHORT_RUN = "--max-steps 4 --batch-size 2 --length 16 --depth 2"


def blocks():
    """The blocks of the README that can be run, in their order: their language and their code."""
    return re.findall(r"^```(bash|python)\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)


def commands(block):
    """The commands of a block for bash, without comments."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    return [re.sub(r"\s+#.*", "", line) for line in lines if line and not line.startswith("#")]


def shortened(command):
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    return f"{command} {SHORT_RUN}" if ".train " in command and "--resume" not in command else command


@pytest.mark.slow
def test_the_readme_works_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    text = "\n".join(list(read_corpus("python-docs").train)[:8])
    Path("text.txt").write_text(text, encoding="utf-8")
    Path("prompts.txt").write_text("The value of\nA class is\n")
    rows = ["What a film.,positive", "Never again.,negative"] * 20
    Path("reviews.csv").write_text("\n".join(["text,sentiment", *rows]) + "\n")
    for language, block in blocks():
        if language == "python":
            exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
            continue
        for command in commands(block):
            if command in NOT_RUN:
                continue
            python, flag, module, *arguments = shlex.split(shortened(command))
            assert (python, flag) == ("python", "-m")
            code, out, error = run(capsys, program_of(module), *arguments)
            assert code == 0, f"{command}\n{out}\n{error}"
    # What the last command and the last example wrote.
    assert Path("site/index.html").is_file() and Path("classifier/config.json").is_file()


def test_what_is_left_out_or_shortened_stands_in_the_readme():
    found = [command for language, block in blocks() if language == "bash" for command in commands(block)]
    assert NOT_RUN.keys() <= set(found)
    for long in SHORTER:
        assert any(long in command for command in found), long
