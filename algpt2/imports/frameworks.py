"""The two frameworks, and the modules that need one."""

import importlib
import importlib.util
from typing import NamedTuple

from algpt2.errors import InputError


class Framework(NamedTuple):
    """One of the two frameworks.

    Args:
        title: str. Its name, as people write it.
        module: str. What it is imported by.
        package: str. The package of its model and its commands.
        library: str. The library of its models, as the Hugging Face hub calls it.
        carry: str. The command of `python -m convert` that carries a run of it to the other one.
    """

    title: str
    module: str
    package: str
    library: str
    carry: str


FRAMEWORKS = {
    "pytorch": Framework("PyTorch", "torch", "algpt2_pt", "transformers", "pt2tf"),
    "tensorflow": Framework("TensorFlow", "tensorflow", "algpt2_tf", "keras-hub", "tf2pt"),
}


def installed_frameworks():
    """list of str: those of `FRAMEWORKS` that can be imported."""
    return [name for name, framework in FRAMEWORKS.items() if importlib.util.find_spec(framework.module)]


def import_module(name):
    """A module that needs what may not be installed.

    Args:
        name: str.

    Raises:
        InputError: if what it needs is not installed or cannot be used.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name} cannot be imported ({error}); the README tells what to install") from error
