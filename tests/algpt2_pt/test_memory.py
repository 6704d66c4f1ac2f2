"""What a process does with the memory that it frees."""

import os
import platform
import subprocess
import sys

import pytest
from isolation import ROOT

CODE = """
import resource, sys
import numpy as np
from algpt2_pt.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(2**21) for _ in range(8)]
    del arrays
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep or give back as they like")
def test_a_step_does_not_wait_for_the_pages_of_the_step_before():
    def new_pages(mode):
        # Pages of 2 MB, which numpy asks for, would be few at any rate.
        environment = {**os.environ, "NUMPY_MADVISE_HUGEPAGE": "0"}
        command = [sys.executable, "-c", CODE, mode]
        return int(subprocess.check_output(command, cwd=ROOT, env=environment, timeout=100))

    assert new_pages("leave") > 2**27 / 4096 / 2 and new_pages("keep") < 100
