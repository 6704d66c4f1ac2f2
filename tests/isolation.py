"""Python code in a process of its own, where some packages cannot be found."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# As if the distributions were not installed: nothing finds them.
BLOCK = """
import sys
BLOCKED = BLOCKED_NAMES
class Without:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in BLOCKED else self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
CODE
assert not [name for name in sys.modules if name.split(".")[0] in BLOCKED]
"""
TORCH = ("torch", "accelerate", "algpt2_pt")
TENSORFLOW = ("tensorflow", "keras", "keras_hub", "keras_nlp", "tensorflow_text", "algpt2_tf")


def run_without(blocked, code):
    """Run code that must not need some packages.

    Args:
        blocked: tuple of str. The names of the packages.
        code: str.

    Returns:
        `subprocess.CompletedProcess`, with text as output.
    """
    code = BLOCK.replace("BLOCKED_NAMES", repr(blocked)).replace("CODE", code)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
