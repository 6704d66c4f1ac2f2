"""The framework-free core of ALGPT2: configuration, weights, data, evaluation and runs."""

from algpt2.configuration import PRESETS, ALGPT2Config, layer_schedule
from algpt2.weights import parameter_count

__all__ = ["PRESETS", "ALGPT2Config", "layer_schedule", "parameter_count"]
