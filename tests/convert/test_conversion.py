"""Conversion both ways, as functions and on the command line."""

import functools
import json

import numpy as np
import pytest
import torch
from models import random_config, random_weights, relative_difference, tiny_config
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from algpt2.checkpoint import read_checkpoint, read_safetensors, write_safetensors
from algpt2.errors import InputError
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_tf import TFALGPT2LMHeadModel
from algpt2_tf.weights import stored_dtype
from convert import compare_directory, pt2tf, tf2pt
from convert.__main__ import main


def checkpoint(directory, config=None, dtype="float32", tokenizer=None):
    config = config or tiny_config()
    config.dtype = dtype
    config.save_pretrained(directory)
    write_safetensors(directory, random_weights(config, dtype))
    if tokenizer:
        tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("seed", range(6))
def test_a_round_trip_changes_no_bit(seed, dtype, tmp_path):
    source = checkpoint(tmp_path / "source", random_config(seed), dtype)
    there = pt2tf(source, output=tmp_path / "tf")
    assert sorted(path.name for path in there.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.weights.h5",
    ]
    assert stored_dtype(there / "model.weights.h5") == dtype
    back = tf2pt(there, output=tmp_path / "pt")
    config, weights = read_checkpoint(back)
    expected_config, expected = read_checkpoint(source)
    assert config.layer_schedule == expected_config.layer_schedule
    assert weights.keys() == expected.keys()
    for name, array in expected.items():
        assert weights[name].dtype == array.dtype
        np.testing.assert_array_equal(weights[name], array)


@pytest.mark.parametrize("seed", range(6))
def test_both_models_load_what_was_converted(seed, tmp_path):
    directory = checkpoint(tmp_path / "both", random_config(seed))
    pt2tf(directory)
    assert all(comparison.passed for comparison in compare_directory(directory))
    ids = np.arange(24).reshape(2, 12)
    expected = AutoModelForCausalLM.from_pretrained(directory).eval()(torch.tensor(ids)).logits
    found = TFALGPT2LMHeadModel.from_pretrained(directory)({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    assert relative_difference(expected, found) < 1e-5


def test_metadata_and_tokenizer_go_along(text_tokenizer, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=0)
    source = checkpoint(tmp_path / "source", config, tokenizer=text_tokenizer)
    target = pt2tf(source, output=tmp_path / "target")
    assert AutoTokenizer.from_pretrained(target).encode("The value") == text_tokenizer.encode("The value")
    assert TFALGPT2LMHeadModel.from_pretrained(target).preprocessor is not None
    assert not list(target.glob("*.safetensors*"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_to_another_dtype_is_that_of_torch(dtype, tmp_path):
    source = checkpoint(tmp_path / "source")
    back = tf2pt(pt2tf(source, output=tmp_path / "tf", dtype=dtype), output=tmp_path / "pt")
    assert json.loads((back / "config.json").read_text())["dtype"] == dtype
    rounded = ALGPT2LMHeadModel.from_pretrained(source).to(getattr(torch, dtype)).state_dict()
    for name, tensor in ALGPT2LMHeadModel.from_pretrained(back).state_dict().items():
        assert torch.equal(tensor, rounded[name]), name


def test_gpt2_of_transformers(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=40, n_embd=24, n_layer=2, n_head=3, eos_token_id=0))
    model.save_pretrained(tmp_path / "gpt2")
    target = pt2tf(tmp_path / "gpt2", output=tmp_path / "tf")
    assert json.loads((target / "config.json").read_text())["model_type"] == "algpt2"
    ids = np.arange(24).reshape(2, 12)
    found = TFALGPT2LMHeadModel.from_pretrained(target)({"token_ids": ids, "padding_mask": np.ones_like(ids)})
    assert relative_difference(model.eval()(torch.tensor(ids)).logits, found) < 1e-5


class TestCommandLine:
    def run(self, capsys, *arguments):
        """Exit code, standard output and standard error of the command line."""
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stopped:
            code = stopped.code
        return (code, *capsys.readouterr())

    def test_conversion_prints_the_difference(self, capsys, tmp_path):
        directory = checkpoint(tmp_path / "checkpoint")
        code, out, _ = self.run(capsys, "pt2tf", directory)
        assert code == 0
        assert f"wrote {directory}" in out
        assert "largest logit difference, unpadded" in out and "largest logit difference, padded" in out
        assert (directory / "model.weights.h5").exists()

    @pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
    def test_rounded_conversions_are_compared_as_rounded(self, dtype, capsys, tmp_path):
        directory = checkpoint(tmp_path / "checkpoint")
        assert self.run(capsys, "pt2tf", directory, "--output", tmp_path / "tf", "--dtype", dtype)[0] == 0
        assert self.run(capsys, "tf2pt", tmp_path / "tf", "--output", tmp_path / "pt", "--dtype", dtype)[0] == 0

    def test_models_that_differ_fail(self, capsys, tmp_path, monkeypatch):
        import convert.conversion

        directory = checkpoint(tmp_path / "checkpoint")

        def change_one_weight(model, weights, source):
            weights["transformer.h.0.mlp.c_fc.bias"] = weights["transformer.h.0.mlp.c_fc.bias"] + 0.01
            assign(model, weights, source)

        assign = convert.conversion.assign_weights
        monkeypatch.setattr(convert.conversion, "assign_weights", change_one_weight)
        code, out, err = self.run(capsys, "pt2tf", directory)
        assert code == 1
        assert "FAILED" in out and "differ beyond tolerance" in err
        assert self.run(capsys, "pt2tf", directory, "--force", "--no-verify")[0] == 0

    def test_what_is_there_is_kept_without_force(self, capsys, tmp_path):
        directory = checkpoint(tmp_path / "checkpoint")
        (directory / "model.weights.h5").write_text("precious")
        code, _, err = self.run(capsys, "pt2tf", directory)
        assert code == 2 and "holds model.weights.h5 already; give --force" in err
        assert (directory / "model.weights.h5").read_text() == "precious"
        assert self.run(capsys, "pt2tf", directory, "--force", "--no-verify")[0] == 0
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.txt").write_text("precious")
        code, _, err = self.run(capsys, "pt2tf", directory, "--output", tmp_path / "other")
        assert code == 2 and "holds thesis.txt already" in err

    @pytest.mark.parametrize("command", ["pt2tf", "tf2pt", "verify"])
    def test_wrong_input_writes_nothing_and_says_what_is_wrong(self, command, capsys, tmp_path):
        code, _, err = self.run(capsys, command, tmp_path / "nothing")
        assert code == 2 and "nothing: no such" in err and "Traceback" not in err
        (tmp_path / "empty").mkdir()
        code, _, err = self.run(capsys, command, tmp_path / "empty")
        assert code == 2 and "config.json: no such file" in err
        assert not list((tmp_path / "empty").iterdir())

    def test_a_damaged_source_leaves_no_target(self, capsys, tmp_path):
        directory = checkpoint(tmp_path / "checkpoint")
        path = directory / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
        code, _, err = self.run(capsys, "pt2tf", directory, "--output", tmp_path / "out")
        assert code == 2 and "model.safetensors: not readable" in err
        assert not (tmp_path / "out").exists()

    def test_rounding_in_place_is_refused(self, capsys, tmp_path):
        directory = checkpoint(tmp_path / "checkpoint")
        code, _, err = self.run(capsys, "pt2tf", directory, "--dtype", "bfloat16")
        assert code == 2 and "give it an --output of its own" in err
        assert not (directory / "model.weights.h5").exists()

    def test_a_target_that_cannot_be_made(self, capsys, tmp_path):
        directory = checkpoint(tmp_path / "checkpoint")
        (tmp_path / "file").write_text("precious")
        for output in (tmp_path / "file", tmp_path / "file" / "below"):
            code, _, err = self.run(capsys, "pt2tf", directory, "--output", output)
            assert code == 2 and ("is not a directory" in err or "cannot be written" in err)

    def test_verify_prints_one_table(self, text_tokenizer, capsys, tmp_path):
        config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=0)
        directory = checkpoint(tmp_path / "checkpoint", config, tokenizer=text_tokenizer)
        self.run(capsys, "pt2tf", directory, "--no-verify")
        code, out, _ = self.run(capsys, "verify", directory, "--length", 64, "--prompt", "The value")
        assert code == 0
        rows = [line.split("|")[1].strip() for line in out.splitlines() if line.startswith("| ")]
        assert rows[1:] == [
            "loss (protocol stream)",
            "perplexity (protocol stream)",
            "largest logit difference, unpadded",
            "largest logit difference, padded",
            "greedy continuation of 'The value'",
        ]
        # The two sides must be told apart from one another, or the comparison is of a model with itself.
        weights = read_safetensors(directory)
        weights["transformer.ln_f.bias"] += 0.1
        write_safetensors(directory, weights)
        code, out, _ = self.run(capsys, "verify", directory, "--length", 64, "--prompt", "The value")
        assert code == 1 and out.count("FAILED") >= 4


def test_a_new_layout_of_the_weights_replaces_the_old(tmp_path, monkeypatch):
    directory = checkpoint(tmp_path / "checkpoint")
    pt2tf(directory)
    expected = read_checkpoint(directory)[1]
    checkpoint(directory, tiny_config(layer_schedule=[0, 0, 1]))
    monkeypatch.setattr(
        "convert.conversion.write_safetensors", functools.partial(write_safetensors, max_shard_size=4000)
    )
    (directory / "model.safetensors").write_bytes(b"an older one")
    tf2pt(directory, force=True)
    assert not (directory / "model.safetensors").exists()
    np.testing.assert_array_equal(read_checkpoint(directory)[1]["project_out.bias"], expected["project_out.bias"])
    monkeypatch.undo()
    tf2pt(directory, force=True)
    assert not (directory / "model.safetensors.index.json").exists()


def test_input_errors_are_exceptions_of_the_functions(tmp_path):
    with pytest.raises(InputError, match="no such file or directory"):
        pt2tf(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"there is no model\.weights\.h5 to convert"):
        tf2pt(checkpoint(tmp_path / "checkpoint"), output=tmp_path / "out")
