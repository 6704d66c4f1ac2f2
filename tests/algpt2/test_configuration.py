"""ALGPT2Config, layer schedules and presets."""

import itertools
import json

import pytest
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig

from algpt2 import PRESETS, ALGPT2Config, layer_schedule, parameter_count
from algpt2.checkpoints.config_file import read_config
from algpt2.configuration import schedule_at_depth, schedule_pattern


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("full", [0] * 12),
        ("none", list(range(12))),
        ("sequence:3", [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]),
        ("cycle:3", [0, 1, 2] * 4),
        ("cycle_rev:3", [0, 1, 2, 0, 1, 2, 0, 1, 2, 2, 1, 0]),
        ("sandwich", [0] + [1] * 10 + [2]),
        # Mixture-of-Recursions, figure 2: own blocks at the ends, a cycle between.
        ("middle_cycle:1,2,1", [0, 1, 2, 1, 2, 1, 2, 1, 2, 1, 2, 3]),
        ("middle_cycle:2,3,1", [0, 1, 2, 3, 4, 2, 3, 4, 2, 3, 4, 5]),
        ("middle_cycle:2,4,2", [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7]),
        ("middle_cycle:0,5,2", [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]),
        ("middle_cycle:3,1,0", [0, 1, 2] + [3] * 9),
    ],
)
def test_patterns_are_those_of_their_papers(pattern, expected):
    assert layer_schedule(pattern, 12) == expected


@pytest.mark.parametrize("n_layer", range(1, 14))
@pytest.mark.parametrize("name", ["sequence", "cycle", "cycle_rev"])
def test_every_number_of_blocks_is_used_in_full(name, n_layer):
    for blocks in range(1, n_layer + 1):
        schedule = layer_schedule(f"{name}:{blocks}", n_layer)
        assert len(schedule) == n_layer
        assert set(schedule) == set(range(blocks))


@pytest.mark.parametrize(
    ("pattern", "n_layer", "message"),
    [
        ("cycle", 4, "unknown sharing pattern 'cycle'"),
        ("spiral:2", 4, "unknown sharing pattern 'spiral:2'"),
        ("cycle:x", 4, "unknown sharing pattern"),
        ("full:2", 4, "unknown sharing pattern"),
        ("cycle:0", 4, "asks for 0 blocks"),
        ("sequence:5", 4, "asks for 5 blocks"),
        ("sandwich", 2, "at least 3 layers"),
        ("middle_cycle:2", 8, "unknown sharing pattern 'middle_cycle:2'.*middle_cycle:P,K,C"),
        ("middle_cycle:1,-1,1", 8, "unknown sharing pattern"),
        ("middle_cycle:1,0,1", 8, "asks for 2 blocks; with n_layer 8 P . K . C is at most 8, and K at least 1"),
        ("middle_cycle:2,4,2", 7, "asks for 8 blocks; with n_layer 7 P . K . C is at most 7"),
        ("full", 0, "n_layer must be a positive integer"),
        ("full", 2.0, "n_layer must be a positive integer"),
    ],
)
def test_wrong_patterns_are_named(pattern, n_layer, message):
    with pytest.raises(ValueError, match=message):
        layer_schedule(pattern, n_layer)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_embd": 10, "n_head": 3}, "n_embd must be divisible by n_head"),
        ({"n_embd": -8}, "n_embd must be a positive integer"),
        ({"vocab_size": 0}, "vocab_size must be a positive integer"),
        ({"n_positions": 0}, "n_positions must be a positive integer"),
        ({"n_head": 0}, "n_head must be a positive integer"),
        ({"n_layer": 0}, "n_layer must be a positive integer"),
        ({"n_layer": -1}, "n_layer must be a positive integer"),
        ({"n_inner": 0}, "n_inner must be a positive integer"),
        ({"embedding_size": -1}, "embedding_size must be a positive integer"),
        ({"layer_schedule": []}, "n_layer must be a positive integer"),
        ({"layer_schedule": [0, 2]}, "layer_schedule must use every block"),
        ({"layer_schedule": [1, 1]}, "layer_schedule must use every block"),
        ({"layer_schedule": [0, -1]}, "layer_schedule must use every block"),
        ({"layer_schedule": [0, 0], "n_layer": 3}, "layer_schedule has 2 entries, but n_layer is 3"),
        ({"activation_function": "gelu2"}, "activation_function 'gelu2' is unknown"),
        ({"resid_pdrop": 1.0}, "resid_pdrop must be"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon must be positive"),
        ({"initializer_range": float("inf")}, "initializer_range must be positive and finite"),
        ({"tie_projections": True, "embedding_size": None}, "tie_projections needs projections"),
    ],
)
def test_wrong_values_name_their_field(values, message):
    with pytest.raises(ValueError, match=message):
        ALGPT2Config(**values)


@pytest.mark.parametrize("field", ["n_embd", "n_layer", "layer_schedule", "tie_projections"])
def test_wrong_types_name_their_field(field):
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match=field):
        ALGPT2Config(**{field: "many"})


def test_a_changed_configuration_is_checked_when_it_is_saved(tmp_path):
    config = ALGPT2Config()
    config.n_head = 7
    with pytest.raises(Exception, match="n_embd must be divisible by n_head"):
        config.save_pretrained(tmp_path)


def test_the_defaults_are_algpt2():
    config = ALGPT2Config()
    assert (config.n_layer, config.n_embd, config.embedding_size) == (12, 768, 128)
    assert config.layer_schedule == [0] * 12
    assert config.n_block == 1


# The counts that the two published systems report (system A's vocabularies), and OpenAI's for GPT-2.
@pytest.mark.parametrize(
    ("preset", "overrides", "count"),
    [
        ("gpt2", {}, 124_439_808),
        ("algpt2", {}, 13_850_880),
        ("algpt2-no-dropout", {}, 13_850_880),
        ("algpt2", {"vocab_size": 47_545}, 13_503_744),
        ("algpt2", {"embedding_size": None}, 46_473_216),
        ("gpt2", {"vocab_size": 47_545}, 122_356_992),
    ],
)
def test_published_parameter_counts(preset, overrides, count):
    assert parameter_count(ALGPT2Config.from_preset(preset, **overrides)) == count


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("algpt2-factorized-256", 20),
        ("algpt2-factorized-512", 34),
        ("algpt2-medium", 19),
        ("algpt2-large", 26),
        ("algpt2-xl", 37),
    ],
)
def test_published_sizes_in_millions(preset, millions):
    assert parameter_count(ALGPT2Config.from_preset(preset)) // 1_000_000 == millions


def test_unknown_preset():
    with pytest.raises(ValueError, match="unknown preset 'gpt3'"):
        ALGPT2Config.from_preset("gpt3")


@pytest.mark.parametrize("preset", PRESETS)
def test_configurations_survive_saving(preset, tmp_path):
    config = ALGPT2Config.from_preset(preset)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "algpt2"
    for loaded in (ALGPT2Config.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, ALGPT2Config)
        assert loaded.layer_schedule == config.layer_schedule
        assert parameter_count(loaded) == parameter_count(config)


def test_another_depth_on_loading(tmp_path):
    ALGPT2Config(n_layer=4).save_pretrained(tmp_path)
    assert ALGPT2Config.from_pretrained(tmp_path, n_layer=6).layer_schedule == [0] * 6
    assert ALGPT2Config.from_pretrained(tmp_path, num_hidden_layers=6).layer_schedule == [0] * 6
    assert ALGPT2Config.from_pretrained(tmp_path, layer_schedule=[0, 1]).n_layer == 2
    ALGPT2Config(layer_schedule=[0, 0, 1, 1]).save_pretrained(tmp_path)
    for deeper in (ALGPT2Config.from_pretrained(tmp_path, n_layer=6), read_config(tmp_path, n_layer=6)):
        assert deeper.layer_schedule == [0, 0, 0, 1, 1, 1]


def every_pattern(n_layer):
    """The patterns that fit a depth."""
    counted = [f"{name}:{k}" for name in ("sequence", "cycle", "cycle_rev") for k in range(1, n_layer + 1)]
    return ["full", "none", *(["sandwich"] if n_layer > 2 else []), *counted]


def test_a_middle_cycle_keeps_its_blocks_at_another_depth_and_has_the_last_of_all_names():
    for n_layer, prelude, cycle, coda in itertools.product(range(1, 9), range(4), range(1, 5), range(4)):
        pattern, blocks = f"middle_cycle:{prelude},{cycle},{coda}", prelude + cycle + coda
        if blocks > n_layer:
            continue
        schedule = layer_schedule(pattern, n_layer)
        others = [other for other in every_pattern(n_layer) if layer_schedule(other, n_layer) == schedule]
        name = schedule_pattern(schedule)
        assert name in (others or [pattern]), (pattern, n_layer)
        # Elsewhere the two have the same shape.
        if n_layer > blocks + 1:
            assert schedule_at_depth(schedule, n_layer + 3) == layer_schedule(pattern, n_layer + 3)
            assert schedule_at_depth(schedule, blocks) == list(range(blocks))


@pytest.mark.parametrize("n_layer", range(1, 10))
def test_a_pattern_is_kept_at_another_depth(n_layer):
    for pattern in every_pattern(n_layer):
        config = ALGPT2Config(layer_schedule=layer_schedule(pattern, n_layer))
        for depth in range(1, 14):
            if config.n_block == 1:
                expected = [0] * depth
            elif depth == n_layer:
                expected = config.layer_schedule
            elif config.n_block > depth or config.layer_schedule == list(range(n_layer)):
                expected = None
            else:
                expected = layer_schedule(pattern, depth)
            if expected:
                changed = ALGPT2Config.from_dict(config.to_dict(), n_layer=depth)
                assert (changed.layer_schedule, changed.n_block) == (expected, config.n_block), (pattern, depth)
            else:
                with pytest.raises(ValueError, match="n_layer"):
                    ALGPT2Config.from_dict(config.to_dict(), n_layer=depth)


@pytest.mark.parametrize("n_layer", range(1, 14))
def test_patterns_coincide_only_where_sharing_is_full_or_none(n_layer):
    by_schedule = {}
    for pattern in every_pattern(n_layer):
        by_schedule.setdefault(tuple(layer_schedule(pattern, n_layer)), []).append(pattern)
    for schedule, patterns in by_schedule.items():
        assert len(patterns) == 1 or schedule in ((0,) * n_layer, tuple(range(n_layer)))


@pytest.mark.parametrize(
    ("schedule", "n_layer", "message"),
    [
        ([0, 1, 1, 0, 1], 6, "follows no named pattern.*leave n_layer as it is"),
        ([1, 0, 0], 4, "follows no named pattern.*leave n_layer as it is"),
        ([0, 1], 6, "has a block for every depth.*leave n_layer as it is"),
        ([0, 1, 2, 0, 1, 2], 2, "'cycle:3' asks for 3 blocks; with n_layer 2 K is 1 to 2"),
        ([0, 1, 2, 1, 2, 3], 3, "'middle_cycle:1,2,1' asks for 4 blocks; with n_layer 3"),
        ([0, 1, 1, 2], 2, "'sandwich' needs at least 3 layers, n_layer is 2"),
        ([0, 0], 0, "n_layer must be a positive integer"),
        ([0, 2], 3, "layer_schedule must use every block"),
    ],
)
def test_a_depth_that_a_schedule_cannot_have(schedule, n_layer, message):
    with pytest.raises(ValueError, match=message):
        ALGPT2Config.from_dict({"layer_schedule": schedule}, n_layer=n_layer)
