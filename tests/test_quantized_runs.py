"""`train --quantize q4`: what the export finds, the step in a few lines, both frameworks, replicas, resumed runs."""

import functools
import importlib
import json
import shutil

import gguf
import numpy as np
import pytest
import tensorflow as tf
import torch
from command_lines import FRAMEWORKS, WEIGHTS_FILES, history, run, stored_weights
from models import pytorch_model, random_weights, read_checkpoint, save_checkpoint, tiny_config
from onnx import numpy_helper
from transformers import PreTrainedTokenizerFast

import algpt2_pt.train
from algpt2.data.corpus import read_corpus
from algpt2.data.train_tokenizer import train_tokenizer
from algpt2.onnx.graph import language_model
from algpt2_pt import training_run

TRAIN = {framework: f"algpt2_{framework}.train" for framework in FRAMEWORKS}
NAMES = {"pt": "pytorch", "tf": "tensorflow"}
STEPS = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A text and a model to start from, with rows of 10, 24, 40 and 96 numbers."""
    directory = tmp_path_factory.mktemp("files")
    text = "".join(read_corpus("python-docs").train)[:20000]
    (directory / "text.txt").write_text(text, encoding="utf-8")
    config = tiny_config(
        vocab_size=300,
        n_positions=16,
        n_inner=40,
        layer_schedule=[0, 0],
        tie_word_embeddings=False,
        depth_norms=True,
        depth_lora_rank=3,
        residual_multiplier=0.7,
        eos_token_id=0,
        bos_token_id=0,
    )
    weights = {name: array / 3 for name, array in random_weights(config, "float32").items()}
    save_checkpoint(directory / "model", config, weights, train_tokenizer([text], 300))
    return directory


def arguments(files, output, *more):
    return [
        *("--init-from", files / "model", "--dataset", files / "text.txt", "--quantize", "q4", "--batch-size", 8),
        *("--max-steps", STEPS, "--learning-rate", 3e-3, "--logging-steps", 1, "--eval-steps", STEPS),
        *("--output-dir", output, *more),
    ]


def train(files, capsys, framework, output, *more):
    code, _, err = run(capsys, TRAIN[framework], *arguments(files, output, *more))
    assert code == 0, err


def losses(directory):
    """The losses of the steps and of the evaluation."""
    return [record[key] for record in history(directory) for key in ("train_loss", "eval_loss") if key in record]


def held_out(files, directory):
    """The part of the text that a run evaluates on."""
    lines = (files / "text.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    (directory / "valid.txt").write_text("".join(lines[-(len(lines) // 20) :]), encoding="utf-8")
    return directory / "valid.txt"


def in_four_bits(weights):
    """Weights whose matrices have 16 levels in every block of 32 numbers of a row, as GGUF's q4_0 defines them."""
    result = dict(weights)
    for name, matrix in weights.items():
        if matrix.ndim == 1 or any(part in name for part in ("wpe", ".depths.", "sop_classifier")):
            continue
        result[name] = matrix.copy()
        for row in result[name]:
            for start in range(0, len(row), 32):
                block = row[start : start + 32]
                scale = block[np.abs(block).argmax()] / -8
                block[:] = np.clip(np.rint(block / (scale or 1)), -8, 7) * scale
    return result


def same(found, expected, tolerance):
    for name, array in expected.items():
        assert np.abs(found[name] - array).max() <= tolerance * np.abs(array).max(), name


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_rounded_matrices_are_those_of_llama_cpp(framework):
    rounded = importlib.import_module(f"algpt2_{framework}.quantization_aware").rounded
    matrix = np.random.default_rng(0).normal(size=(40, 96)).astype("float32")
    matrix[3, 32:64] = 0
    kind = gguf.GGMLQuantizationType.Q4_0
    expected = gguf.quants.dequantize(gguf.quants.quantize(matrix, kind), kind)
    found = np.asarray(rounded(torch.tensor(matrix) if framework == "pt" else tf.constant(matrix)))
    # Their scales are float16.
    assert np.abs(found - expected).max() < 1e-3 * np.abs(matrix).max()
    same({"rounded": found}, in_four_bits({"rounded": matrix}), 1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_step_has_the_gradients_of_four_bits_and_changes_the_exact_matrices(framework, files, capsys, tmp_path):
    output, rate = tmp_path / "run", 0.1
    more = ("--optimizer", "sgd", "--learning-rate", rate, "--max-grad-norm", 1e9, "--weight-decay", 0)
    more = (*more, "--warmup-steps", 0, "--lr-schedule", "constant", "--max-steps", 1, "--save-steps", 1)
    train(files, capsys, framework, output, *more, "--max-train-blocks", 8)
    config, exact = read_checkpoint(files / "model")
    model = pytorch_model(config, in_four_bits(exact))
    # The step has all blocks that there are.
    tokenizer = PreTrainedTokenizerFast.from_pretrained(files / "model")
    ids = torch.tensor(tokenizer((files / "text.txt").read_text())["input_ids"][: 8 * 16]).reshape(8, 16)
    loss = model(ids, labels=ids).loss
    loss.backward()
    np.testing.assert_allclose(history(output)[0]["train_loss"], loss.item(), rtol=1e-5)
    gradients = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    stepped = {name: array - rate * gradients[name] for name, array in exact.items()}
    found = read_checkpoint(output / "checkpoint-1", NAMES[framework])[1]
    same(found, stepped, 1e-5)
    same(read_checkpoint(output, NAMES[framework])[1], in_four_bits(found), 1e-6)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_run_ends_with_the_matrices_of_an_export_in_4_bits_and_says_their_perplexity(
    framework, files, capsys, tmp_path
):
    output = tmp_path / "run"
    train(files, capsys, framework, output, "--load-best", "--eval-steps", 2, "--sop")
    config, weights = read_checkpoint(output, NAMES[framework])
    graph = language_model(config, weights, "q4").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    rounded = {name for name, array in in_four_bits(weights).items() if array is not weights[name]}
    assert {f"{name.removesuffix('.levels')}.weight" for name in stored if name.endswith(".levels")} == rounded
    assert {"transformer.wte.weight", "lm_head.weight", "transformer.h.0.mlp.c_fc.weight"} < rounded
    for name in rounded:
        levels, scales = (stored[f"{name.removesuffix('.weight')}.{part}"] for part in ("levels", "scales"))
        numbers = np.stack([levels & 15, levels >> 4], -1).reshape(*levels.shape[:2], -1).astype("float32") - 8
        matrix = (numbers * scales[..., None]).reshape(len(levels), -1)[:, : weights[name].shape[1]]
        # The graph has the multiplier of both residual branches in what leads to them.
        expected = weights[name] * (config.residual_multiplier if "c_proj" in name else 1)
        np.testing.assert_allclose(matrix, expected, atol=1e-6 * np.abs(matrix).max(), err_msg=name)
    text = ("--dataset", held_out(files, tmp_path), "--length", 16, "--json")
    measured = json.loads(run(capsys, f"algpt2_{framework}.evaluate", output, *text)[1])
    best = min((record for record in history(output) if "eval_loss" in record), key=lambda record: record["eval_loss"])
    np.testing.assert_allclose(measured["loss"], best["eval_loss"], rtol=1e-5)
    checkpoint = read_checkpoint(output / f"checkpoint-{best['step']}", NAMES[framework])[1]
    for name in weights.keys() - rounded:
        np.testing.assert_array_equal(weights[name], checkpoint[name], err_msg=name)


@pytest.mark.slow
def test_a_compiled_run_ends_with_rounded_matrices_too(files, capsys, tmp_path, monkeypatch):
    # The names of a compiled model are longer; PyTorch's own compiler would take a minute.
    eager = functools.partial(training_run.TrainingArguments, torch_compile_backend="eager")
    monkeypatch.setattr(training_run, "TrainingArguments", eager)
    train(files, capsys, "pt", tmp_path / "run", "--compile", "--save-steps", STEPS)
    assert not any("_orig_mod" in name for name in stored_weights(tmp_path / "run"))
    exact = read_checkpoint(tmp_path / "run" / f"checkpoint-{STEPS}")[1]
    same(read_checkpoint(tmp_path / "run")[1], in_four_bits(exact), 1e-6)


VARIANTS = {
    "tf": ("tf", ()),
    "tf, in parts and on two replicas": ("tf", ("--gradient-accumulation", 2, "--strategy", "mirrored")),
    "pt, in parts": ("pt", ("--gradient-accumulation", 4)),
    "pt, checkpointed": ("pt", ("--gradient-checkpointing",)),
}


@pytest.fixture(scope="module")
def expected(files, tmp_path_factory):
    """The losses of a run in PyTorch, at once and in one process."""
    directory = tmp_path_factory.mktemp("expected") / "run"
    algpt2_pt.train.main([str(argument) for argument in arguments(files, directory)])
    return losses(directory)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_both_frameworks_learn_the_same_in_parts_and_on_replicas(variant, expected, files, capsys, tmp_path):
    framework, more = VARIANTS[variant]
    train(files, capsys, framework, tmp_path / "run", *more)
    found = losses(tmp_path / "run")
    assert len(found) == STEPS + 1 and found[-2] < found[0] - 0.01
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_resumed_run_goes_on_from_the_exact_matrices(framework, files, capsys, tmp_path):
    output = tmp_path / "run"
    train(files, capsys, framework, output, "--save-steps", STEPS // 2, "--dropout", 0.1)
    weights = stored_weights(output)
    (output / WEIGHTS_FILES[framework]).unlink()
    shutil.rmtree(output / f"checkpoint-{STEPS}")
    code, _, err = run(capsys, TRAIN[framework], "--output-dir", output, "--resume")
    assert code == 0, err
    for name, array in stored_weights(output).items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)
