"""`inspect`: what it tells, from headers alone."""

import json
import math

import pytest
import torch
from command_lines import run
from isolation import TENSORFLOW, TORCH, run_without
from models import pretraining_weights, random_config, save_checkpoint, tiny_config
from transformers import GPT2Config, GPT2LMHeadModel

import convert.__main__ as main_module
from algpt2 import ALGPT2Config, layer_schedule
from algpt2.checkpoints.weights import weight_shapes
from algpt2_pt import ALGPT2LMHeadModel
from convert import inspect_checkpoint, pt2tf


@pytest.mark.parametrize("seed", range(6))
def test_it_tells_the_model(seed, tmp_path):
    config = random_config(seed)
    save_checkpoint(tmp_path, config)
    report = inspect_checkpoint(tmp_path)
    assert report["parameters"] == sum(p.numel() for p in ALGPT2LMHeadModel(config).parameters())
    assert report["layer_schedule"] == config.layer_schedule and report["factorized"] == config.is_factorized
    assert layer_schedule(report["pattern"], config.n_layer) == config.layer_schedule
    assert report["tokenizer"] is None and report["problems"] == []
    (weights,) = report["weights"]
    assert weights["dialect"] == "ALGPT2 (PyTorch)" and weights["dtypes"] == {"float32": weights["tensors"]}
    assert weights["bytes"] == (tmp_path / "model.safetensors").stat().st_size


def test_it_tells_of_all_weights_and_the_tokenizer(text_tokenizer, capsys, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=0)
    save_checkpoint(tmp_path, config, pretraining_weights(config, "float32"), text_tokenizer)
    pt2tf(tmp_path, max_shard_size=9000)
    code, out, _ = run(capsys, main_module, "inspect", tmp_path)
    assert code == 0
    for part in (
        "ALGPT2 (PyTorch): model.safetensors, ",
        "ALGPT2 (Keras): model.weights.json and ",
        "heads: language model, sentence order",
        "schedule     sequence:2, 2 blocks: [0, 0, 1]",
        f"embedding    {len(text_tokenizer)} tokens of 10, factorized, head tied",
        f"tokenizer    {len(text_tokenizer)} tokens; <|endoftext|> (0) ends a text",
        "problems     none",
    ):
        assert part in out, out
    code, out, _ = run(capsys, main_module, "inspect", tmp_path, "--json")
    assert code == 0 and len(json.loads(out)["weights"]) == 2


def test_another_end_token_is_a_problem(text_tokenizer, capsys, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=5)
    save_checkpoint(tmp_path, config, tokenizer=text_tokenizer)
    code, out, _ = run(capsys, main_module, "inspect", tmp_path)
    assert code == 1 and "eos_token_id is 5, but the tokenizer's is 0" in out


def test_what_generation_config_has_wrong_is_a_problem(capsys, tmp_path):
    save_checkpoint(tmp_path)
    (tmp_path / "generation_config.json").write_text("{")
    code, out, _ = run(capsys, main_module, "inspect", tmp_path)
    assert code == 1 and "generation_config.json: not readable as JSON" in out and "problems" not in out


def test_every_copy_of_the_weights_is_looked_at(capsys, tmp_path):
    save_checkpoint(tmp_path)
    (tmp_path / "model.weights.h5").write_bytes(b"no HDF5")
    code, out, _ = run(capsys, main_module, "inspect", tmp_path)
    assert code == 1 and "ALGPT2 (PyTorch)" in out and "model.weights.h5: not readable as HDF5" in out


INSPECT = """
import sys
from convert.cli import main
main(["inspect", PATH])
"""


def test_tensorflow_is_not_imported_and_pytorch_not_needed(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=2, vocab_size=50, n_positions=9, eos_token_id=0))
    model.save_pretrained(tmp_path)
    process = run_without((*TORCH, *TENSORFLOW), INSPECT.replace("PATH", repr(str(tmp_path))))
    assert process.returncode == 0 and "GPT-2 (transformers)" in process.stdout and not process.stderr, process.stderr


def test_files_of_pytorch_need_pytorch(tmp_path):
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_head=2, n_layer=2, vocab_size=50, n_positions=9, eos_token_id=0))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    process = run_without(TORCH, INSPECT.replace("PATH", repr(str(tmp_path))))
    assert process.returncode == 1
    assert "pytorch_model.bin: only PyTorch reads such files, and it is not installed" in process.stdout
    assert process.stderr == "python -m convert: 1 problem\n"


@pytest.mark.slow
def test_no_values_are_read(tmp_path):
    """As many gigabytes as one likes, which are not on the disk: all of them are holes."""
    config = ALGPT2Config.from_preset("algpt2-xl", layer_schedule=list(range(48)))
    config.save_pretrained(tmp_path)
    header, end = {}, 0
    for name, shape in weight_shapes(config).items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    report = inspect_checkpoint(tmp_path)
    assert report["weights"][0]["bytes"] > 5e9 and report["parameters"] == 1_482_536_896
    assert report["problems"] == []
