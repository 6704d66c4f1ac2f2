"""The notebooks of `examples/`, without Jupyter."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))
# What is written otherwise, so that it takes seconds.
SHORTER = {"--max-steps 400": "--max-steps 4", "--eval-steps 200": "--eval-steps 4"}


def cells(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_one_of_format_4_without_outputs(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4 and notebook["nbformat_minor"] >= 5
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert set(cell) - {"execution_count", "outputs"} == {"cell_type", "id", "metadata", "source"}
        assert all(isinstance(line, str) for line in cell["source"])
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.slow
def test_the_quick_start_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (path,) = [path for path in NOTEBOOKS if path.name == "quick_start.ipynb"]
    code = ["".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code"]
    assert all(any(long in cell for cell in code) for long in SHORTER)
    namespace = {"__name__": "__main__"}
    for cell in code:
        for long, short in SHORTER.items():
            cell = cell.replace(long, short)
        exec(compile(cell, path.name, "exec"), namespace)
    # The notebook's own checks have passed; this is what it shows.
    out = capsys.readouterr().out
    assert "perplexity" in out and out.count("The value of") >= 2 and "| ok" in out
