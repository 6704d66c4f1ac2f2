"""Opening checkpoint directories, and writing files all at once or not at all."""

import json
import os
import stat

import h5py
import numpy as np
import pytest
import torch
from models import random_weights, read_checkpoint, save_checkpoint, tiny_config
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from algpt2.checkpoints.checkpoint import open_checkpoint, write_checkpoint_weights
from algpt2.checkpoints.config_file import read_config
from algpt2.checkpoints.directories import find_checkpoint
from algpt2.errors import InputError
from algpt2.files.atomic import directory_replaced, files_replaced_in


@pytest.fixture
def checkpoint(tmp_path):
    """A directory with a configuration and weights, and the weights."""
    weights = random_weights(tiny_config(), "float32")
    return save_checkpoint(tmp_path / "checkpoint", weights=weights), weights


def assert_same(weights, expected):
    assert weights.keys() == expected.keys()
    for name, array in expected.items():
        assert weights[name].dtype == array.dtype
        np.testing.assert_array_equal(weights[name], array)


def test_reading_back(checkpoint):
    directory, weights = checkpoint
    config, loaded = read_checkpoint(directory)
    assert config.layer_schedule == [0, 0, 1]
    assert_same(loaded, weights)


@pytest.mark.parametrize("framework", ["pytorch", "tensorflow"])
def test_shards_with_an_index(framework, checkpoint):
    directory, weights = checkpoint
    (directory / "model.safetensors").unlink()
    write_checkpoint_weights(directory, tiny_config(), weights, framework, max_shard_size=4000)
    assert len([path for path in directory.iterdir() if path.name.startswith("model")]) > 4
    assert_same(read_checkpoint(directory)[1], weights)


def test_transformers_reads_the_shards(checkpoint):
    directory, weights = checkpoint
    (directory / "model.safetensors").unlink()
    write_checkpoint_weights(directory, tiny_config(), weights, "pytorch", max_shard_size="4KB")
    state = AutoModelForCausalLM.from_pretrained(directory).state_dict()
    for name, array in weights.items():
        np.testing.assert_array_equal(state[name].numpy(), array)


@pytest.mark.parametrize("framework", ["pytorch", "tensorflow"])
def test_what_was_opened_stays_when_its_files_are_replaced(framework, checkpoint):
    directory, weights = checkpoint
    (directory / "model.safetensors").unlink()
    write_checkpoint_weights(directory, tiny_config(), weights, framework)
    opened = open_checkpoint(directory)
    with files_replaced_in(directory) as temporary:
        write_checkpoint_weights(temporary, tiny_config(), random_weights(tiny_config(), "float64", seed=1), framework)
    assert_same({name: np.asarray(tensor) for name, tensor in opened.weights.items()}, weights)


def test_a_tied_head_stored_twice_is_read_once(checkpoint):
    directory, weights = checkpoint
    twice = {**weights, "lm_head.weight": weights["transformer.wte.weight"]}
    save_checkpoint(directory, weights=twice)
    assert_same(read_checkpoint(directory)[1], weights)
    save_checkpoint(directory, weights={**twice, "lm_head.weight": twice["lm_head.weight"] + 1})
    with pytest.raises(InputError, match=r"model\.safetensors: the head differs from the embedding"):
        read_checkpoint(directory)


def test_a_tied_head_may_have_a_dtype_of_its_own(tmp_path):
    # So large that the embedding takes several pieces, which then are not those of the head.
    config = tiny_config(vocab_size=200_000)
    weights = random_weights(config, "float32")
    head = weights["transformer.wte.weight"].astype("float16")
    weights["transformer.wte.weight"] = head.astype("float32")
    save_checkpoint(tmp_path, config, {**weights, "lm_head.weight": head})
    assert_same(read_checkpoint(tmp_path)[1], weights)
    head[-1, -1] += 1
    save_checkpoint(tmp_path, config, {**weights, "lm_head.weight": head})
    with pytest.raises(InputError, match="the head differs from the embedding"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "algpt2",', "not readable as JSON"),
        ("[]", "expected a JSON object, found list"),
        ('{"model_type": "bert"}', "model_type is 'bert'; expected algpt2 or gpt2"),
        ('{"model_type": ["algpt2"]}', r"model_type is \['algpt2'\]"),
        ('{"model_type": "algpt2", "dtype": "nonsense"}', "dtype is 'nonsense'; expected one of float64"),
        ('{"model_type": "algpt2", "n_head": 5}', "n_embd must be divisible by n_head"),
        ('{"model_type": "algpt2", "n_layer": 3, "layer_schedule": [0, 2, 2]}', "without gaps"),
        ('{"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": true}', "scale_attn_by_inverse_layer_idx is True"),
        ('{"model_type": "gpt2", "add_cross_attention": true}', "add_cross_attention is True; ALGPT2 computes False"),
        ('{"class_name": "BertBackbone", "config": {}}', "class_name is 'BertBackbone'; expected GPT2Backbone"),
        ('{"class_name": "GPT2Backbone", "config": {}}', "the configuration of GPT2Backbone has no 'num_layers'"),
        ('{"class_name": "GPT2Backbone"}', "config is of type NoneType; expected an object"),
        ('{"class_name": "GPT2Backbone", "config": [1]}', "config is of type list; expected an object"),
        ('{"model_type": "algpt2", "n_head": "a"}', "n_head"),
    ],
)
def test_configurations_that_cannot_be_read(content, message, checkpoint):
    directory, _ = checkpoint
    (directory / "config.json").write_text(content)
    with pytest.raises(InputError, match=rf"config\.json: .*{message}") as raised:
        read_config(directory)
    assert "\n" not in str(raised.value)


def test_the_index_of_transformers_is_read(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=2, vocab_size=50, n_positions=9, eos_token_id=0))
    model.save_pretrained(tmp_path, max_shard_size="2KB")
    assert not (tmp_path / "model.safetensors").exists()
    weights = read_checkpoint(tmp_path)[1]
    expected = model.transformer.h[1].mlp.c_fc.weight.detach().numpy().T
    np.testing.assert_array_equal(weights["transformer.h.1.mlp.c_fc.weight"], expected)


def first_file(index):
    return next(iter(index["weight_map"].values()))


@pytest.mark.parametrize("framework", ["pytorch", "tensorflow"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.clear(), "weight_map must map tensor names to file names"),
        (lambda index: index.update(weight_map=["a"]), "weight_map must map tensor names to file names"),
        (lambda index: index["weight_map"].update(a=3), "weight_map must map tensor names to file names"),
        (lambda index: index["weight_map"].popitem(), r"index disagree on tensor|missing: transformer\.wte"),
        (lambda index: index["weight_map"].update(more=first_file(index)), "and the index disagree on tensor more"),
        (lambda index: index["weight_map"].update(more="model-9.safetensors"), r"model-9\.safetensors: no such file"),
        (lambda index: index["weight_map"].update(more="../secret"), "'../secret' must be a file name in the same"),
        (lambda index: index["weight_map"].update(more="/etc/passwd"), "'/etc/passwd' must be a file name in the same"),
        (lambda index: index["weight_map"].update(more=".."), r"'\.\.' must be a file name in the same"),
    ],
)
def test_indexes_that_cannot_be_trusted(framework, change, message, checkpoint):
    directory, weights = checkpoint
    (directory / "model.safetensors").unlink()
    write_checkpoint_weights(directory, tiny_config(), weights, framework, max_shard_size=4000)
    (path,) = [path for path in directory.glob("model*.json")]
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(InputError, match=message):
        read_checkpoint(directory)


def test_a_directory_without_weights(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"holds no weights; expected one of model\.safetensors, pytorch_model\.bin"):
        open_checkpoint(tmp_path)


def test_tensors_of_no_known_system(tmp_path, monkeypatch):
    tiny_config().save_pretrained(tmp_path)
    with h5py.File(tmp_path / "model.weights.h5", "w") as file:
        file["layers/other/vars/0"] = np.ones(3)
    with pytest.raises(InputError, match=r"model\.weights\.h5: its tensors \(layers/other/vars/0, \.\.\.\) are of no"):
        open_checkpoint(tmp_path)
    # From any working directory, the message names the file once.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^model\.weights\.h5: its tensors"):
        open_checkpoint(".")


def test_a_name_that_is_nowhere(tmp_path):
    with pytest.raises(InputError, match="no such directory, and the Hugging Face hub does not give it"):
        find_checkpoint(tmp_path / "nothing")


class TestFilesReplacedIn:
    def test_all_or_nothing(self, tmp_path):
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

    def test_a_new_directory_appears_whole(self, tmp_path):
        with files_replaced_in(tmp_path / "deep" / "out") as temporary:
            (temporary / "below").mkdir()
            (temporary / "below" / "a").write_text("new")
            assert not (tmp_path / "deep" / "out").exists()
        assert (tmp_path / "deep" / "out" / "below" / "a").read_text() == "new"
        mask = os.umask(0)
        os.umask(mask)
        assert stat.S_IMODE((tmp_path / "deep" / "out").stat().st_mode) == 0o777 & ~mask
        assert stat.S_IMODE((tmp_path / "deep" / "out" / "below" / "a").stat().st_mode) == 0o666 & ~mask

    def test_the_group_of_a_shared_folder_is_inherited(self, tmp_path):
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared").chmod(0o2775)
        with directory_replaced(tmp_path / "shared" / "out") as temporary:
            (temporary / "below").mkdir()
        mask = os.umask(0)
        os.umask(mask)
        for path in (tmp_path / "shared" / "out", tmp_path / "shared" / "out" / "below"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o2777 & ~mask

    def test_what_no_new_file_replaces_stays_unless_it_is_stale(self, tmp_path):
        (tmp_path / "out" / "below").mkdir(parents=True)
        for name in ("kept", "part-1", "part-2", "below/kept", "below/part-3"):
            (tmp_path / "out" / name).write_text("old")
        with files_replaced_in(tmp_path / "out", stale=["part-*", "below/part-*"]) as temporary:
            (temporary / "below").mkdir()
            for name in ("part-2", "below/new"):
                (temporary / name).write_text("new")
        found = {path.name: path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()}
        assert found == {"kept": "old", "part-2": "new", "new": "new"}
        assert (tmp_path / "out" / "below" / "kept").exists()

    @pytest.mark.parametrize("name", ["z", "below/z"])
    def test_nothing_moves_where_a_place_is_taken(self, name, tmp_path):
        target = tmp_path / "out"
        (target / "z" / "deep").mkdir(parents=True)
        (target / "below").write_text("old") if name == "below/z" else None
        (target / "a").write_text("old")
        with pytest.raises(InputError, match=r"is a (directory|file), where"), files_replaced_in(target) as temporary:
            (temporary / name).parent.mkdir(exist_ok=True)
            for file in ("a", name):
                (temporary / file).write_text("new")
        assert (target / "a").read_text() == "old" and (target / "z" / "deep").is_dir()

    def test_a_full_disk_is_an_input_error(self, tmp_path):
        with pytest.raises(InputError, match="No space left"), files_replaced_in(tmp_path / "out") as temporary:
            (temporary / "a").write_text("new")
            raise OSError(28, "No space left on device")
        assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_bfloat16_values_survive(tmp_path):
    config = tiny_config()
    weights = random_weights(config, "bfloat16")
    for framework in ("pytorch", "tensorflow"):
        directory = tmp_path / framework
        config.save_pretrained(directory)
        write_checkpoint_weights(directory, config, weights, framework)
        assert_same(read_checkpoint(directory)[1], weights)
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "pytorch").state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
