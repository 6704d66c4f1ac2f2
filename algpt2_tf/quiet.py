"""Keeps TensorFlow's notes about the machine, which its libraries print as they load, from standard error."""

import contextlib
import glob
import os
import re
import sys
import tempfile

# Information and warnings in the formats of absl and of TensorFlow; absl's head line; what CUDA finds missing; and
# what grain, which KerasHub uses, says of JAX.
NOTES = re.compile(
    rb"[IW]\d{4} [\d:.]+ |E\d{4} [\d:.]+ +\d+ cuda|\d{4}-\d\d-\d\d [\d:.]+ [IW] (tensorflow|external)/"
    rb"|WARNING: All log messages before absl::InitializeLog"
    rb"|To enable the following instructions:"
    rb"|WARNING:absl:Failed to load jax profiler"
)
GPU_FILES = ("/dev/nvidia[0-9]*", "/dev/nvhost*", "/dev/dxg")


@contextlib.contextmanager
def without_notes(module):
    """Keep the notes from standard error while a module is imported; all other lines are written after it.

    The libraries write to the file of the process, past Python, before they know of `TF_CPP_MIN_LOG_LEVEL`.

    Args:
        module: str. Its name. Where there is no GPU, `tensorflow` looks for one here, since it notes that too.
    """
    try:
        sys.stderr.flush()
        kept = os.dup(2)
    except (OSError, AttributeError, ValueError):
        # There is no standard error.
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
            if module == "tensorflow" and not any(map(glob.glob, GPU_FILES)):
                sys.modules[module].config.list_physical_devices("GPU")
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines = [line for line in file if not NOTES.match(line)]
            os.write(2, b"".join(lines))
