"""Reading and writing checkpoint directories."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from models import random_weights, tiny_config
from transformers import GPT2Config, GPT2LMHeadModel

from algpt2.checkpoint import (
    files_replaced_in,
    find_checkpoint,
    read_checkpoint,
    read_config,
    read_safetensors,
    write_safetensors,
)
from algpt2.errors import InputError


@pytest.fixture
def checkpoint(tmp_path):
    """A directory with a configuration and weights, and the weights."""
    config = tiny_config()
    weights = random_weights(config, "float32")
    config.save_pretrained(tmp_path)
    write_safetensors(tmp_path, weights)
    return tmp_path, weights


def assert_same(weights, expected):
    assert weights.keys() == expected.keys()
    for name, array in expected.items():
        assert weights[name].dtype == array.dtype
        np.testing.assert_array_equal(weights[name], array)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_what_is_written_is_what_torch_reads(dtype, tmp_path):
    weights = random_weights(tiny_config(), dtype)
    write_safetensors(tmp_path, weights)
    loaded = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert loaded.keys() == weights.keys()
    for name, tensor in loaded.items():
        assert tensor.dtype == getattr(torch, dtype)
        np.testing.assert_array_equal(tensor.double().numpy(), weights[name].astype("float64"))


def test_reading_back(checkpoint):
    directory, weights = checkpoint
    config, loaded = read_checkpoint(directory)
    assert config.layer_schedule == [0, 0, 1]
    assert_same(loaded, weights)


def test_shards_with_an_index(checkpoint):
    directory, weights = checkpoint
    (directory / "model.safetensors").unlink()
    write_safetensors(directory, weights, max_shard_size=4000)
    assert len(list(directory.glob("model-*-of-*.safetensors"))) > 3
    assert_same(read_checkpoint(directory)[1], weights)


def test_reads_the_shards_that_transformers_writes(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=2, vocab_size=50, n_positions=9, eos_token_id=0))
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    assert not (tmp_path / "model.safetensors").exists()
    _, weights = read_checkpoint(tmp_path)
    expected = model.transformer.h[1].mlp.c_fc.weight.detach().numpy().T
    np.testing.assert_array_equal(weights["transformer.h.1.mlp.c_fc.weight"], expected)


def test_a_tied_head_stored_twice_is_read_once(checkpoint):
    directory, weights = checkpoint
    twice = {**weights, "lm_head.weight": weights["transformer.wte.weight"]}
    write_safetensors(directory, twice)
    assert_same(read_checkpoint(directory)[1], weights)
    write_safetensors(directory, {**twice, "lm_head.weight": twice["lm_head.weight"] + 1})
    with pytest.raises(InputError, match=r"lm_head\.weight differs from transformer\.wte\.weight"):
        read_checkpoint(directory)


def damage_truncate(directory):
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def damage_header(directory):
    (directory / "model.safetensors").write_bytes(b"\xff" * 64)


def damage_remove(directory):
    (directory / "model.safetensors").unlink()


def damage_config(directory):
    (directory / "config.json").write_text('{"model_type": "algpt2",')


def damage_config_list(directory):
    (directory / "config.json").write_text("[]")


def damage_config_type(directory):
    (directory / "config.json").write_text('{"model_type": "bert"}')


def damage_config_dtype(directory):
    stored = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**stored, "dtype": "nonsense"}))


def damage_config_type_list(directory):
    (directory / "config.json").write_text('{"model_type": ["algpt2"]}')


def damage_twice(directory):
    weights = read_safetensors(directory)
    write_safetensors(directory, {**weights, "wte.weight": weights["transformer.wte.weight"]})


def damage_config_value(directory):
    stored = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**stored, "n_head": 5}))


def damage_config_block(directory):
    stored = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**stored, "layer_schedule": [0, 1, 2]}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_truncate, "model.safetensors: not readable as safetensors"),
        (damage_header, "model.safetensors: not readable as safetensors"),
        (damage_remove, "neither model.safetensors nor model.safetensors.index.json"),
        (damage_config, "config.json: not readable as JSON"),
        (damage_config_list, "config.json: expected a JSON object, found list"),
        (damage_config_type, "config.json: model_type is 'bert'; expected one of algpt2, gpt2"),
        (damage_config_value, "config.json: n_embd must be divisible by n_head"),
        (damage_config_dtype, r"config\.json: dtype is 'nonsense'; expected one of float64"),
        (damage_config_type_list, "model_type is \\['algpt2'\\]"),
        (damage_twice, "some tensors are there twice"),
        (damage_config_block, "missing: transformer.h.2.attn.c_attn.weight"),
    ],
)
def test_damaged_checkpoints(checkpoint, damage, message):
    directory, _ = checkpoint
    damage(directory)
    with pytest.raises(InputError, match=message):
        read_checkpoint(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("weight_map"), "weight_map must map"),
        (
            lambda index: index["weight_map"].update(extra=next(iter(index["weight_map"].values()))),
            "disagree on tensor",
        ),
        (lambda index: index["weight_map"].update(extra="gone.safetensors"), "gone.safetensors: no such file"),
        (lambda index: index["weight_map"].update(extra="../secret.safetensors"), "must be a file name in the same"),
        (lambda index: index["weight_map"].pop("transformer.wte.weight"), "disagree on tensor|missing"),
    ],
)
def test_wrong_index_files(checkpoint, change, message):
    directory, weights = checkpoint
    (directory / "model.safetensors").unlink()
    write_safetensors(directory, weights, max_shard_size=4000)
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=message):
        read_checkpoint(directory)


@pytest.mark.parametrize("field", ["scale_attn_by_inverse_layer_idx", "add_cross_attention"])
def test_gpt2_variants_that_compute_otherwise_are_refused(field, tmp_path):
    GPT2Config(**{field: True}).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=field):
        read_config(tmp_path)


def test_a_name_that_is_nowhere(tmp_path):
    with pytest.raises(InputError, match="no such directory, and not to be had from the Hugging Face hub"):
        find_checkpoint(tmp_path / "nothing")


def test_files_appear_whole_or_not_at_all(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "a").write_text("old")
    with pytest.raises(RuntimeError), files_replaced_in(target) as temporary:
        (temporary / "a").write_text("new")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    with files_replaced_in(target) as temporary:
        (temporary / "a").write_text("new")
    assert (target / "a").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="No space left"), files_replaced_in(tmp_path / "out") as temporary:
        (temporary / "a").write_text("new")
        raise OSError(28, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_bfloat16_values_survive(tmp_path):
    array = np.array([1.5, -3.140625], ml_dtypes.bfloat16)
    write_safetensors(tmp_path, {"a": array})
    np.testing.assert_array_equal(read_safetensors(tmp_path)["a"], array)
