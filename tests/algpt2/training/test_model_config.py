"""The model and the rate that `train` starts with where nothing is said."""

import json

import pytest

from algpt2 import ALGPT2Config
from algpt2.training.arguments import train_parser
from algpt2.training.model_config import model_config
from algpt2.training.optimization import default_learning_rate


def config_of(*flags):
    return model_config(train_parser("pytorch", "").parse_args([*flags]))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--preset", "algpt2-tiny"], 0.0884),
        (["--preset", "algpt2-tiny", "--config-override", "n_embd=256"], 0.0625),
        (["--preset", "algpt2-tiny", "--config-override", "initializer_range=0.02"], 0.02),
        (["--config", "small-shared"], 0.02),
    ],
)
def test_new_weights_follow_the_width_unless_their_size_is_given(flags, expected):
    assert config_of(*flags).initializer_range == expected


def test_a_file_that_says_nothing_of_its_first_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "algpt2", "n_embd": 100, "n_head": 4}))
    assert config_of("--config", str(tmp_path / "config.json")).initializer_range == 0.1


def test_a_new_model_of_another_depth_has_parameters_for_its_own_depths(tmp_path):
    ALGPT2Config(n_layer=4, depth_norms=True).save_pretrained(tmp_path)
    config = config_of("--config", str(tmp_path), "--depth", "6")
    assert config.trained_schedule is None and config.depths_of(0) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("width", "multiplier", "has_weights", "expected"),
    [(500, 1, False, 0.002), (16, 1, False, 0.008), (500, 0.25, False, 0.004), (500, 0.25, True, 0.001)],
)
def test_the_rate_falls_with_the_width(width, multiplier, has_weights, expected):
    config = ALGPT2Config(n_embd=width, n_head=4, residual_multiplier=multiplier)
    assert default_learning_rate(config, has_weights) == expected
