"""The canonical weights and their check."""

import numpy as np
import pytest
from models import both_models, random_config, random_weights, tiny_config

from algpt2 import PRESETS, ALGPT2Config, parameter_count
from algpt2.checkpoints.casting import Casting, cast_weights
from algpt2.checkpoints.formats.lazy_tensor import DTYPES, pieces
from algpt2.checkpoints.weights import check_weights
from algpt2.errors import InputError


@pytest.mark.parametrize("seed", range(8))
def test_parameter_count_is_that_of_both_models(seed):
    config = random_config(seed)
    tensorflow, pytorch = both_models(config, "float32")
    assert tensorflow.count_params() == sum(p.numel() for p in pytorch.parameters()) == parameter_count(config)


@pytest.mark.parametrize("preset", PRESETS)
def test_parameter_count_of_presets_is_that_of_the_pytorch_model(preset):
    import torch

    from algpt2_pt import ALGPT2LMHeadModel

    config = ALGPT2Config.from_preset(preset)
    with torch.device("meta"):
        model = ALGPT2LMHeadModel(config)
    assert sum(p.numel() for p in model.parameters()) == parameter_count(config)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_right_weights_pass(dtype):
    config = tiny_config()
    check_weights(config, random_weights(config, dtype))


def test_everything_wrong_is_listed_at_once():
    config = tiny_config()
    weights = random_weights(config, "float32")
    del weights["transformer.project_out.bias"]
    weights["extra.weight"] = np.zeros(3, "float32")
    weights["transformer.ln_f.bias"] = np.zeros((24, 1), "float32")
    weights["transformer.ln_f.weight"] = np.zeros(24, "int64")
    weights["transformer.wte.weight"][3, 4] = np.nan
    weights["transformer.wpe.weight"][0, 0] = np.inf
    with pytest.raises(InputError) as raised:
        check_weights(config, weights, source="somewhere")
    message = str(raised.value)
    assert message.startswith("somewhere: 6 tensors do not fit the configuration")
    for part in (
        "missing: transformer.project_out.bias (10,)",
        "unexpected: extra.weight (3,)",
        "misshapen: transformer.ln_f.bias is (24, 1), expected (24,)",
        "not a float type: transformer.ln_f.weight is int64",
        "not finite: transformer.wte.weight",
        "not finite: transformer.wpe.weight",
    ):
        assert part in message


def test_casting_refuses_to_overflow():
    with pytest.raises(InputError, match=r"a holds values too large for float16"):
        cast_weights({"a": np.array([1e6], "float32"), "b": np.array([1.0], "float32")}, "float16")
    assert cast_weights({"a": np.array([1e6], "float32")}, "bfloat16")["a"].dtype.name == "bfloat16"


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), [(a, b) for a in DTYPES for b in DTYPES if a != b])
def test_the_rounding_error_is_relative_to_the_largest_value_of_the_tensor(source, target):
    draw = np.random.default_rng(0)
    # The first is larger than a piece, with its largest value in the last.
    weights = {"large": draw.normal(size=(3000, 1000)), "small": draw.normal(size=(2, 3))}
    weights["large"][-1, -1] = 1000.0
    weights = {name: array.astype(DTYPES[source]) for name, array in weights.items()}
    casting, expected = Casting(target), {}
    for name, array in weights.items():
        parts = list(pieces(array))
        assert name == "small" or len(parts) > 1
        for part in parts:
            casting(name, part)
        exact = array.astype("float64")
        expected[name] = np.abs(exact - exact.astype(DTYPES[target])).max() / np.abs(exact).max()
    assert casting.error == max(expected.values())
    assert casting.tensor == (max(expected, key=expected.get) if casting.error else None)
