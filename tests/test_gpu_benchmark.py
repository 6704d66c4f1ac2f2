"""`benchmarks/gpu.py --smoke`: what a GPU is asked for in a few minutes runs on a CPU, and its checks hold there."""

import json
import os
import subprocess
import sys

import pytest
from isolation import ROOT

pytestmark = pytest.mark.slow

CHECKS = {"ok", "left out"}


def test_all_of_it_runs(tmp_path):
    process = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--smoke", "--output-dir", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    tables = json.loads((tmp_path / "gpu.json").read_text())["tables"]
    results = {row[""]: row["result"] for row in tables["Checks"]}
    assert len(results) > 10 and {result.partition(":")[0] for result in results.values()} == CHECKS, results
    # What is left out needs a GPU, or a package for one.
    assert sum(result.startswith("left out") for result in results.values()) == 2
    speeds = [row for title, rows in tables.items() if title.startswith(("Training", "Decoding")) for row in rows]
    assert len(speeds) > 15 and all(float(row["tokens/s"].replace(",", "")) > 0 for row in speeds), speeds
    assert (tmp_path / "gpu.md").read_text().count("\n## ") == len(tables)


def test_no_gpu_is_one_line(tmp_path):
    process = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--output-dir", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 2
    assert process.stderr == "gpu.py: error: PyTorch finds no GPU; try the command with --smoke\n"
