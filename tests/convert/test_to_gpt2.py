"""A plain GPT-2 of any ALGPT2, run by transformers and by KerasHub."""

import json
import subprocess
import sys
from pathlib import Path

import keras_hub
import numpy as np
import pytest
import torch
from command_lines import run
from models import (
    both_models,
    pretraining_weights,
    pytorch_model,
    random_batch,
    random_config,
    random_weights,
    relative_difference,
    save_checkpoint,
    tiny_config,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2LMHeadModel

import convert.__main__ as main_module
from algpt2.data.train_tokenizer import train_tokenizer
from algpt2.errors import InputError
from convert import to_gpt2

ROOT = Path(__file__).parent.parent.parent
TOLERANCES = {"float32": 1e-5, "float64": 1e-10}


def gpt2_able(seed):
    """A configuration drawn at random, with the activation that KerasHub's GPT-2 has."""
    config = random_config(seed)
    return type(config).from_dict(config.to_dict(), activation_function="gelu_new")


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("seed", range(8))
def test_transformers_gives_the_same_logits(seed, dtype, tmp_path):
    # Any activation that transformers knows.
    config = random_config(seed)
    save_checkpoint(tmp_path / "checkpoint", config, dtype=dtype)
    to_gpt2(tmp_path / "checkpoint", tmp_path / "gpt2")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2").eval()
    assert type(model) is GPT2LMHeadModel and model.dtype == getattr(torch, dtype)
    for padded in (False, True):
        ids, mask = random_batch(config, padded=padded)
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        expected, found = both_models(config, dtype)[1](**inputs).logits, model(**inputs).logits
        assert relative_difference(expected[mask == 1], found[mask == 1]) < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("seed", range(4))
def test_keras_hub_gives_the_same_logits(seed, dtype, tmp_path, monkeypatch):
    if dtype == "float64":
        # TensorFlow's own has its constants in float32, which alone makes KerasHub's GPT-2 differ by 1e-9 from
        # transformers'.
        def gelu(x):
            return (
                0.5
                * x
                * (
                    1.0
                    + keras_hub.src.models.gpt2.gpt2_backbone.keras.ops.tanh(
                        np.sqrt(2.0 / np.pi) * (x + 0.044715 * x * x * x)
                    )
                )
            )

        monkeypatch.setattr("keras_hub.src.models.gpt2.gpt2_backbone.gelu_approximate", gelu)
    config = gpt2_able(seed)
    save_checkpoint(tmp_path / "checkpoint", config, dtype=dtype)
    to_gpt2(tmp_path / "checkpoint", tmp_path / "preset", keras_hub=True)
    model = keras_hub.models.GPT2CausalLM.from_preset(str(tmp_path / "preset"), dtype=dtype)
    assert isinstance(model, keras_hub.models.GPT2CausalLM)
    ids, mask = random_batch(config)
    expected = both_models(config, dtype)[1](torch.tensor(ids), attention_mask=torch.tensor(mask)).logits
    found = np.asarray(model({"token_ids": ids, "padding_mask": mask}))
    assert relative_difference(expected[mask == 1], found[mask == 1]) < TOLERANCES[dtype]


@pytest.mark.slow
def test_a_preset_with_a_head_of_its_own_opens_in_a_new_process(tmp_path):
    save_checkpoint(tmp_path / "checkpoint", tiny_config())
    to_gpt2(tmp_path / "checkpoint", tmp_path / "preset", keras_hub=True)
    code = f"""
import algpt2_tf
from keras_hub.models import GPT2CausalLM
print(type(GPT2CausalLM.from_preset({str(tmp_path / "preset")!r}, preprocessor=None)).__name__)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert found.stdout == "UntiedGPT2CausalLM\n", found.stderr


def test_keras_hub_reads_the_files_of_transformers_where_the_head_is_tied(tmp_path):
    config = tiny_config(tie_projections=True)
    save_checkpoint(tmp_path / "checkpoint", config)
    to_gpt2(tmp_path / "checkpoint", tmp_path / "gpt2")
    assert json.loads((tmp_path / "gpt2" / "config.json").read_text())["tie_word_embeddings"] is True
    model = keras_hub.models.GPT2CausalLM.from_preset(str(tmp_path / "gpt2"), load_weights=True, preprocessor=None)
    ids, mask = random_batch(config, padded=False)
    expected = both_models(config, "float32")[1](torch.tensor(ids)).logits
    assert relative_difference(expected, np.asarray(model({"token_ids": ids, "padding_mask": mask}))) < 1e-5


def rank_deficient(bias):
    """Weights whose project_out has two equal rows, and a bias of these two values at them."""
    weights = random_weights(tiny_config(), "float32")
    weights["transformer.project_out.weight"][1] = weights["transformer.project_out.weight"][0]
    weights["transformer.project_out.bias"][:2] = bias
    return weights


def test_where_no_gpt2_is_exact(capsys, tmp_path):
    directory = save_checkpoint(tmp_path / "checkpoint", weights=rank_deficient((0.5, -0.5)))
    command = ("to-gpt2", directory, "--output", tmp_path / "gpt2")
    code, _, err = run(capsys, main_module, *command)
    assert (
        code == 2
        and "project_out.weight (10, 24) has rank 9" in err
        and "to-gpt2 --lossy writes the nearest one" in err
    )
    assert not (tmp_path / "gpt2").exists()
    # The nearest one is written, and the comparison says that it is not the same.
    code, out, err = run(capsys, main_module, *command, "--lossy")
    assert code == 1 and "FAILED" in out and (tmp_path / "gpt2").exists()
    # The same rank is no hindrance to a bias in its range.
    directory = save_checkpoint(tmp_path / "other", weights=rank_deficient((0.5, 0.5)))
    assert run(capsys, main_module, "to-gpt2", directory, "--output", tmp_path / "exact")[0] == 0


def test_embeddings_wider_than_the_hidden_states(tmp_path):
    config = tiny_config(embedding_size=30)
    directory = save_checkpoint(tmp_path / "checkpoint", config)
    with pytest.raises(InputError, match=r"project_out\.weight \(30, 24\) has rank 24"):
        to_gpt2(directory, tmp_path / "gpt2")
    weights = random_weights(config, "float32")
    weights["transformer.project_out.bias"][:] = 0
    directory = save_checkpoint(tmp_path / "other", config, weights)
    to_gpt2(directory, tmp_path / "gpt2")
    ids, _ = random_batch(config)
    found = GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2").eval()(torch.tensor(ids)).logits
    assert relative_difference(pytorch_model(config, weights)(torch.tensor(ids)).logits, found) < 1e-5


def test_half_precision_becomes_exact_float32(capsys, tmp_path):
    directory = save_checkpoint(tmp_path / "checkpoint", dtype="bfloat16")
    code, out, _ = run(capsys, main_module, "to-gpt2", directory, "--output", tmp_path / "gpt2")
    assert code == 0 and "float32" in out.splitlines()[0]
    code, out, _ = run(capsys, main_module, "to-gpt2", directory, "--output", tmp_path / "half", "--dtype", "bfloat16")
    assert code == 0 and "largest rounding error" in out


def test_keras_hub_computes_one_activation_only(capsys, tmp_path):
    directory = save_checkpoint(tmp_path / "checkpoint", tiny_config(activation_function="relu"))
    code, _, err = run(capsys, main_module, "to-gpt2", directory, "--output", tmp_path / "gpt2", "--keras-hub")
    assert code == 2 and "activation_function is 'relu'; KerasHub's GPT-2 computes 'gelu_new' only" in err


@pytest.mark.slow
def test_the_tokenizer_goes_along(text_tokenizer, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=0)
    directory = save_checkpoint(tmp_path / "checkpoint", config, tokenizer=text_tokenizer)
    text = "The value of an object"
    to_gpt2(directory, tmp_path / "gpt2")
    assert AutoTokenizer.from_pretrained(tmp_path / "gpt2").encode(text) == text_tokenizer.encode(text)
    to_gpt2(directory, tmp_path / "preset", keras_hub=True)
    model = keras_hub.models.GPT2CausalLM.from_preset(str(tmp_path / "preset"))
    assert list(model.preprocessor.tokenizer(text)) == text_tokenizer.encode(text)
    ids = text_tokenizer(text, return_tensors="pt")
    reference = GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2").eval()
    expected = reference.generate(**ids, max_length=24, do_sample=False)[0]
    model.preprocessor = None
    model.compile(sampler="greedy")
    padded = np.zeros((1, 24), "int32")
    padded[0, : ids["input_ids"].shape[1]] = ids["input_ids"]
    inputs = {"token_ids": padded, "padding_mask": np.arange(24)[None] < ids["input_ids"].shape[1]}
    found = model.generate(inputs, stop_token_ids=None)["token_ids"][0]
    np.testing.assert_array_equal(found[: len(expected)], expected)


def test_a_preset_has_no_tokenizer_that_splits_otherwise(tmp_path):
    tokenizer = train_tokenizer(["the value of an object"] * 9, vocab_size=270, add_prefix_space=True)
    config = tiny_config(vocab_size=len(tokenizer), eos_token_id=0)
    directory = save_checkpoint(tmp_path / "checkpoint", config, tokenizer=tokenizer)
    to_gpt2(directory, tmp_path / "preset", keras_hub=True)
    assert not (tmp_path / "preset" / "assets").exists()
    assert keras_hub.models.GPT2CausalLM.from_preset(str(tmp_path / "preset")).preprocessor is None


def test_shards_are_not_of_presets(tmp_path):
    directory = save_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(InputError, match="--max-shard-size is for the files of transformers"):
        to_gpt2(directory, tmp_path / "preset", max_shard_size="1KB", keras_hub=True)


@pytest.mark.slow
def test_a_sentence_order_head_is_left_out(tmp_path):
    config = tiny_config()
    save_checkpoint(tmp_path / "checkpoint", config, pretraining_weights(config, "float32"))
    to_gpt2(tmp_path / "checkpoint", tmp_path / "gpt2")
    _, info = GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
