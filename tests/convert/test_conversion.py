"""Conversion both ways, as functions and on the command line."""

import json

import numpy as np
import pytest
import torch
from command_lines import run
from models import random_config, random_weights, read_checkpoint, relative_difference, save_checkpoint, tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer

import convert.__main__ as main_module
from algpt2.checkpoints.casting import Casting
from algpt2.checkpoints.formats.lazy_tensor import DTYPES
from algpt2.errors import InputError
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_tf import TFALGPT2Backbone, TFALGPT2LMHeadModel
from algpt2_tf.weights import assign_weights, canonical_weights
from convert import compare_directory, pt2tf, tf2pt, to_gpt2, to_pt


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("seed", range(6))
def test_a_round_trip_changes_no_bit(seed, dtype, tmp_path):
    source = save_checkpoint(tmp_path / "source", random_config(seed), dtype=dtype)
    there = pt2tf(source, output=tmp_path / "tf").directory
    assert sorted(path.name for path in there.iterdir()) == [
        *("config.json", "configuration_algpt2.py", "generation_config.json", "model.weights.h5"),
        "modeling_algpt2.py",
    ]
    back = tf2pt(there, output=tmp_path / "pt").directory
    config, weights = read_checkpoint(back)
    expected_config, expected = read_checkpoint(source)
    assert config.layer_schedule == expected_config.layer_schedule
    assert weights.keys() == expected.keys()
    for name, array in expected.items():
        assert weights[name].dtype == array.dtype
        np.testing.assert_array_equal(weights[name], array)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_both_models_load_what_was_converted(seed, tmp_path):
    directory = save_checkpoint(tmp_path / "both", random_config(seed))
    pt2tf(directory)
    assert all(comparison.passed for comparison in compare_directory(directory))
    ids = np.arange(24).reshape(2, 12)
    expected = AutoModelForCausalLM.from_pretrained(directory).eval()(torch.tensor(ids)).logits
    found = TFALGPT2LMHeadModel.from_pretrained(directory)({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    assert relative_difference(expected, found) < 1e-5


def test_metadata_and_tokenizer_go_along(text_tokenizer, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=0)
    source = save_checkpoint(tmp_path / "source", config, tokenizer=text_tokenizer)
    target = pt2tf(source, output=tmp_path / "target").directory
    assert AutoTokenizer.from_pretrained(target).encode("The value") == text_tokenizer.encode("The value")
    assert TFALGPT2LMHeadModel.from_pretrained(target).preprocessor is not None
    assert not list(target.glob("*.safetensors*"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_to_another_dtype_is_that_of_torch(dtype, tmp_path):
    source = save_checkpoint(tmp_path / "source")
    there = pt2tf(source, output=tmp_path / "tf", dtype=dtype)
    back = tf2pt(there.directory, output=tmp_path / "pt").directory
    assert json.loads((back / "config.json").read_text())["dtype"] == dtype
    rounded = ALGPT2LMHeadModel.from_pretrained(source).to(getattr(torch, dtype)).state_dict()
    for name, tensor in ALGPT2LMHeadModel.from_pretrained(back).state_dict().items():
        assert torch.equal(tensor, rounded[name]), name


class TestCommandLine:
    def test_conversion_prints_the_difference(self, capsys, tmp_path):
        directory = save_checkpoint(tmp_path / "checkpoint")
        code, out, _ = run(capsys, main_module, "pt2tf", directory)
        assert code == 0
        assert f"wrote {directory}" in out
        assert "largest logit difference, unpadded" in out and "largest logit difference, padded" in out
        assert (directory / "model.weights.h5").exists()

    @pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
    def test_rounded_conversions_are_compared_as_rounded(self, dtype, capsys, tmp_path):
        directory = save_checkpoint(tmp_path / "checkpoint")
        assert run(capsys, main_module, "pt2tf", directory, "--output", tmp_path / "tf", "--dtype", dtype)[0] == 0
        assert run(capsys, main_module, "tf2pt", tmp_path / "tf", "--output", tmp_path / "pt", "--dtype", dtype)[0] == 0

    def test_models_that_differ_fail(self, capsys, tmp_path, monkeypatch):
        directory = save_checkpoint(tmp_path / "checkpoint")

        def change_one_weight(casting, name, piece):
            cast = call(casting, name, piece)
            return cast + np.float32(0.01) if name == "transformer.h.0.mlp.c_fc.bias" else cast

        call = Casting.__call__
        monkeypatch.setattr(Casting, "__call__", change_one_weight)
        code, out, err = run(capsys, main_module, "pt2tf", directory)
        assert code == 1
        assert "FAILED" in out and "differ beyond tolerance" in err
        assert run(capsys, main_module, "pt2tf", directory, "--force", "--no-verify")[0] == 0

    def test_what_is_there_is_kept_without_force(self, capsys, tmp_path):
        directory = save_checkpoint(tmp_path / "checkpoint")
        (directory / "model.weights.h5").write_text("precious")
        code, _, err = run(capsys, main_module, "pt2tf", directory)
        assert code == 2 and "holds model.weights.h5 already; give --force" in err
        assert (directory / "model.weights.h5").read_text() == "precious"
        assert run(capsys, main_module, "pt2tf", directory, "--force", "--no-verify")[0] == 0
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.txt").write_text("precious")
        code, _, err = run(capsys, main_module, "pt2tf", directory, "--output", tmp_path / "other")
        assert code == 2 and "holds thesis.txt already" in err

    @pytest.mark.parametrize("command", ["pt2tf", "tf2pt", "verify"])
    def test_wrong_input_writes_nothing_and_says_what_is_wrong(self, command, capsys, tmp_path):
        code, _, err = run(capsys, main_module, command, tmp_path / "nothing")
        assert code == 2 and "nothing: no such" in err and "Traceback" not in err
        (tmp_path / "empty").mkdir()
        code, _, err = run(capsys, main_module, command, tmp_path / "empty")
        assert code == 2 and "config.json: no such file" in err
        assert not list((tmp_path / "empty").iterdir())

    def test_a_damaged_source_leaves_no_target(self, capsys, tmp_path):
        directory = save_checkpoint(tmp_path / "checkpoint")
        path = directory / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
        code, _, err = run(capsys, main_module, "pt2tf", directory, "--output", tmp_path / "out")
        assert code == 2 and "model.safetensors: not readable" in err
        assert not (tmp_path / "out").exists()

    def test_rounding_in_place_is_refused(self, capsys, tmp_path):
        directory = save_checkpoint(tmp_path / "checkpoint")
        code, _, err = run(capsys, main_module, "pt2tf", directory, "--dtype", "bfloat16")
        assert code == 2 and "give it an --output of its own" in err
        assert not (directory / "model.weights.h5").exists()

    def test_a_target_that_cannot_be_made(self, capsys, tmp_path):
        directory = save_checkpoint(tmp_path / "checkpoint")
        (tmp_path / "file").write_text("precious")
        for output in (tmp_path / "file", tmp_path / "file" / "below"):
            code, _, err = run(capsys, main_module, "pt2tf", directory, "--output", output)
            assert code == 2 and ("is not a directory" in err or "cannot be written" in err)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_the_rounding_error_is_that_of_numpy(self, dtype, capsys, tmp_path):
        directory = save_checkpoint(tmp_path / "checkpoint")
        weights = random_weights(tiny_config(), "float32")
        code, out, _ = run(
            capsys, main_module, "to-tf", directory, "--output", tmp_path / "out", "--dtype", dtype, "--no-verify"
        )
        errors = {
            n: np.abs(w - w.astype(DTYPES[dtype]).astype("f8")).max() / np.abs(w).max() for n, w in weights.items()
        }
        worst = max(errors, key=errors.get)
        assert code == 0 and f"largest rounding error: {errors[worst]:.2e} of the largest value of {worst}" in out

    def test_values_too_large_for_the_dtype(self, capsys, tmp_path):
        weights = random_weights(tiny_config(), "float32")
        weights["transformer.project_out.bias"][3] = 1e6
        directory = save_checkpoint(tmp_path / "checkpoint", weights=weights)
        code, _, err = run(capsys, main_module, "to-tf", directory, "--output", tmp_path / "out", "--dtype", "float16")
        assert (
            code == 2
            and "transformer.project_out.bias holds values too large for float16; choose another --dtype" in err
        )
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_new_layout_of_the_weights_replaces_the_old(tmp_path):
    directory = save_checkpoint(tmp_path / "checkpoint")
    pt2tf(directory)
    expected = read_checkpoint(directory)[1]
    (directory / "model.safetensors").write_bytes(b"an older one")
    tf2pt(directory, force=True, max_shard_size=4000)
    assert not (directory / "model.safetensors").exists()
    assert len(list(directory.glob("model-*.safetensors"))) > 3
    np.testing.assert_array_equal(
        read_checkpoint(directory)[1]["transformer.project_out.bias"], expected["transformer.project_out.bias"]
    )
    pt2tf(directory, force=True, max_shard_size=4000)
    assert not (directory / "model.weights.h5").exists() and len(list(directory.glob("model_*.weights.h5"))) > 3
    tf2pt(directory, force=True)
    assert not list(directory.glob("model-*.safetensors")) and not list(directory.glob("*.index.json"))
    assert all(comparison.passed for comparison in compare_directory(directory))


def test_a_model_saved_twice_is_the_second(tmp_path):
    config = tiny_config()
    for seed, size in ((0, "5GB"), (1, 4000), (2, "5GB")):
        expected = random_weights(config, "float32", seed)
        model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config))
        assign_weights(model, expected)
        model.save_pretrained(tmp_path, max_shard_size=size)
        found = read_checkpoint(tmp_path, "tensorflow")[1]
        np.testing.assert_array_equal(found["transformer.project_out.bias"], expected["transformer.project_out.bias"])


@pytest.mark.parametrize("size", [4000, "5GB"])
def test_keras_itself_loads_what_was_converted(size, tmp_path):
    config = tiny_config(layer_schedule=[1, 0, 1])
    directory = save_checkpoint(tmp_path / "checkpoint", config)
    target = pt2tf(directory, output=tmp_path / "tf", max_shard_size=size).directory
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config))
    model.load_weights(target / ("model.weights.json" if size == 4000 else "model.weights.h5"))
    for name, array in random_weights(config, "float32").items():
        np.testing.assert_array_equal(canonical_weights(model)[name], array)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_what_keras_itself_saves_is_read(sharded, tmp_path):
    config = tiny_config(layer_schedule=[1, 0, 1], resid_pdrop=0.1)
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config))
    model.compile(optimizer="adam", loss="auto")
    ids = np.ones((2, 8), "int32")
    model.fit({"token_ids": ids, "padding_mask": ids}, ids, verbose=0)
    config.save_pretrained(tmp_path)
    if sharded:
        model.save_weights(tmp_path / "model.weights.json", max_shard_size=20000 / 2**30)
        assert len(list(tmp_path.glob("model_*.weights.h5"))) > 3
    else:
        model.save_weights(tmp_path / "model.weights.h5")
    weights = read_checkpoint(tf2pt(tmp_path).directory)[1]
    for name, array in canonical_weights(model).items():
        np.testing.assert_array_equal(weights[name], array)


@pytest.mark.slow
def test_input_errors_are_exceptions_of_the_functions(tmp_path):
    with pytest.raises(InputError, match="no such file or directory"):
        pt2tf(tmp_path / "nothing")
    with pytest.raises(
        InputError, match=r"holds none of model\.weights\.h5, tf_model\.h5; found model\.safetensors only"
    ):
        tf2pt(save_checkpoint(tmp_path / "checkpoint"), output=tmp_path / "out")


def test_what_is_replaced_is_the_checkpoint_alone(text_tokenizer, tmp_path):
    source = save_checkpoint(tmp_path / "source", tiny_config(vocab_size=len(text_tokenizer)), tokenizer=text_tokenizer)
    target = tmp_path / "target"
    to_gpt2(source, target, keras_hub=True)
    assert (target / "assets" / "tokenizer").is_dir()
    for name in ("notes.txt", "model-00001-of-best.safetensors", "data/a.txt"):
        (target / name).parent.mkdir(exist_ok=True)
        (target / name).write_text("precious")
    to_pt(source, target, force=True)
    assert not list(target.rglob("assets*")) and not (target / "task.json").exists()
    for name in ("notes.txt", "model-00001-of-best.safetensors", "data/a.txt"):
        assert (target / name).read_text() == "precious"
    # A run goes on with the weights of its checkpoints, whatever stands beside them.
    (target / "arguments.json").write_text("{}")
    with pytest.raises(InputError, match="target: is a run, which goes on with its own weights"):
        to_pt(source, target, force=True)
