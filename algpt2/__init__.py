"""The framework-free core of ALGPT2: configuration, checkpoints, data, evaluation and runs."""

import importlib.util
import os
from typing import TYPE_CHECKING

from algpt2.errors import InputError
from algpt2.imports.lazy import lazy_names, register_with

if TYPE_CHECKING:
    from algpt2.checkpoints.weights import parameter_count
    from algpt2.configuration import PRESETS, ALGPT2Config, layer_schedule

__all__ = ["PRESETS", "ALGPT2Config", "InputError", "layer_schedule", "parameter_count"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "algpt2.configuration": ("PRESETS", "ALGPT2Config", "layer_schedule"),
        "algpt2.checkpoints.weights": ("parameter_count",),
    },
)

if importlib.util.find_spec("torch") is None:
    # transformers would say that no model can be used, but those of Keras can.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

register_with(("transformers.models.auto.configuration_auto",), __name__, "algpt2.imports.registration")
