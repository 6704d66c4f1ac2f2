"""The framework-free core of ALGPT2: configuration, checkpoints, data, evaluation and runs."""

import importlib.util
import os

if importlib.util.find_spec("torch") is None:
    # transformers would say that no model can be used, but those of Keras can.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from transformers import AutoConfig

from algpt2.checkpoints.weights import parameter_count
from algpt2.configuration import PRESETS, ALGPT2Config, layer_schedule
from algpt2.errors import InputError

# Registered here and not in configuration.py: the copy of that file that travels with a model must not replace this
# class.
AutoConfig.register("algpt2", ALGPT2Config, exist_ok=True)

__all__ = ["PRESETS", "ALGPT2Config", "InputError", "layer_schedule", "parameter_count"]
