"""`train --quantize q4`: what the export finds, the step in a few lines, both frameworks, replicas, resumed runs."""

import json
import shutil

import numpy as np
import pytest
import torch
from command_lines import FRAMEWORKS, WEIGHTS_FILES, history, run, stored_weights
from models import pytorch_model, random_weights, read_checkpoint, save_checkpoint, tiny_config
from onnx import numpy_helper
from transformers import PreTrainedTokenizerFast

import algpt2_pt.train
from algpt2.data.corpus import read_corpus
from algpt2.data.train_tokenizer import train_tokenizer
from algpt2.onnx.graph import language_model

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
        depth_norms=True,
        depth_lora_rank=3,
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
        if matrix.ndim == 1 or "wpe" in name or ".depths." in name:
            continue
        result[name] = matrix.copy()
        for row in result[name]:
            for start in range(0, len(row), 32):
                block = row[start : start + 32]
                scale = block[np.abs(block).argmax()] / -8
                block[:] = np.clip(np.rint(block / scale), -8, 7) * scale
    return result


def same(found, expected, tolerance):
    for name, array in expected.items():
        assert np.abs(found[name] - array).max() <= tolerance * np.abs(array).max(), name


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
def test_an_export_in_4_bits_has_the_matrices_and_the_perplexity_that_the_run_ends_with(
    framework, files, capsys, tmp_path
):
    train(files, capsys, framework, tmp_path / "run", "--load-best", "--eval-steps", 2)
    config, weights = read_checkpoint(tmp_path / "run", NAMES[framework])
    graph = language_model(config, weights, "q4").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = {node.input[1]: node for node in graph.node if node.op_type == "MatMulNBits"}
    rounded = [name for name, array in in_four_bits(weights).items() if array is not weights[name]]
    assert len(rounded) == 7
    for name in rounded:
        levels, scales = (stored[f"{name.removesuffix('.weight')}.{part}"] for part in ("levels", "scales"))
        assert f"{name.removesuffix('.weight')}.levels" in nodes
        numbers = np.stack([levels & 15, levels >> 4], -1).reshape(*levels.shape[:2], -1).astype("float32") - 8
        matrix = (numbers * scales[..., None]).reshape(len(levels), -1)[:, : weights[name].shape[1]]
        np.testing.assert_allclose(matrix, weights[name], atol=1e-6 * np.abs(matrix).max(), err_msg=name)
    text = held_out(files, tmp_path)
    measured = run(
        capsys, f"algpt2_{framework}.evaluate", tmp_path / "run", "--dataset", text, "--length", 16, "--json"
    )[1]
    best = min(record["eval_loss"] for record in history(tmp_path / "run") if "eval_loss" in record)
    np.testing.assert_allclose(json.loads(measured)["loss"], best, rtol=1e-5)


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
    train(files, capsys, framework, output, "--save-steps", STEPS // 2)
    weights = stored_weights(output)
    (output / WEIGHTS_FILES[framework]).unlink()
    shutil.rmtree(output / f"checkpoint-{STEPS}")
    code, _, err = run(capsys, TRAIN[framework], "--output-dir", output, "--resume")
    assert code == 0, err
    for name, array in stored_weights(output).items():
        np.testing.assert_array_equal(array, weights[name], err_msg=name)
