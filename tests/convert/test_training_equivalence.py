"""The same flags train the same in both frameworks, on one and on two replicas, at once and in parts."""

import json

import numpy as np
import pytest
import torch
from models import read_checkpoint, tiny_config

import algpt2_pt.train
import algpt2_tf.train
from algpt2.data.corpus import read_corpus
from algpt2.data.train_tokenizer import train_tokenizer
from algpt2_pt import ALGPT2ForPreTraining
from algpt2_tf import TFALGPT2ForPreTraining, TFALGPT2LMHeadModel
from algpt2_tf.weights import canonical_weights

STEPS = 30
VARIANTS = {
    "plain": [],
    "factorized, other schedule": ["--init-from", "factorized", "--lr-schedule", "cosine", "--packing", "line"],
    "in parts": ["--gradient-accumulation", "4", "--packing", "line"],
    "recomputed": ["--gradient-checkpointing"],
    "sentence order": ["--sop", "--gradient-accumulation", "2"],
    "sgd": ["--optimizer", "sgd", "--lr-schedule", "wsd", "--warmup-steps", "5"],
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A text with lines of many lengths, and two checkpoints to start from."""
    directory = tmp_path_factory.mktemp("files")
    text = "".join(read_corpus("python-docs").train)[:30000]
    (directory / "text.txt").write_text(text, encoding="utf-8")
    tokenizer = train_tokenizer([text], 300)
    for name, embedding_size in (("unfactorized", None), ("factorized", 10)):
        config = tiny_config(
            vocab_size=300,
            layer_schedule=[0, 1, 0],
            embedding_size=embedding_size,
            n_positions=16,
            initializer_range=0.15,
        )
        torch.manual_seed(0)
        ALGPT2ForPreTraining(config).save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    return directory


def train(module, files, output, *extra):
    """The losses of every step, and the weights at the end."""
    start = ["--init-from", "unfactorized"] if "--init-from" not in extra else []
    arguments = [*start, *extra]
    place = arguments.index("--init-from") + 1
    arguments[place] = str(files / arguments[place])
    module.main(
        [
            *("--dataset", str(files / "text.txt"), "--batch-size", "8", "--max-steps", str(STEPS)),
            *("--learning-rate", "1e-2", "--weight-decay", "0.1", "--max-grad-norm", "0.5", "--logging-steps", "1"),
            *("--eval-steps", "15", "--output-dir", str(output), *arguments),
        ]
    )
    records = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    keys = ("train_loss", "eval_loss", "sop_loss", "eval_sop_accuracy")
    return {key: [r[key] for r in records if key in r] for key in keys}


def weights(output, framework, sop):
    if framework == "pt":
        return read_checkpoint(output)[1]
    model_class = TFALGPT2ForPreTraining if sop else TFALGPT2LMHeadModel
    return canonical_weights(model_class.from_pretrained(output, preprocessor=None))


def assert_same_path(expected, found):
    for key, values in expected[0].items():
        np.testing.assert_allclose(found[0][key], values, rtol=1e-4, err_msg=key)
    assert expected[1].keys() == found[1].keys()
    for name, array in expected[1].items():
        difference = np.abs(found[1][name] - array)
        if name.endswith("c_attn.bias"):
            # The softmax ignores the bias of the keys: its gradient is rounding error, which AdamW blows up.
            queries, _, values = np.split(difference, 3)
            difference = np.concatenate([queries, values])
        assert difference.max() < 1e-3 * np.abs(array).max(), name


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_same_flags_give_the_same_losses(files, variant, tmp_path):
    results = []
    for framework, module in (("pt", algpt2_pt.train), ("tf", algpt2_tf.train)):
        losses = train(module, files, tmp_path / framework, *VARIANTS[variant])
        results.append((losses, weights(tmp_path / framework, framework, "--sop" in VARIANTS[variant])))
    assert len(losses["train_loss"]) == STEPS
    assert losses["train_loss"][-1] < 0.95 * losses["train_loss"][0]
    if variant == "sentence order":
        assert len(losses["sop_loss"]) == STEPS
        assert len(losses["eval_sop_accuracy"]) == 2
    assert_same_path(*results)


@pytest.mark.slow
def test_two_replicas_agree_with_one_device(files, tmp_path):
    # Lines: the replicas hold different numbers of tokens that count.
    extra = ("--packing", "line", "--gradient-accumulation", "2")
    one = train(algpt2_tf.train, files, tmp_path / "one", *extra)
    two = train(algpt2_tf.train, files, tmp_path / "two", "--strategy", "mirrored", *extra)
    assert_same_path(
        (one, weights(tmp_path / "one", "tf", False)),
        (two, weights(tmp_path / "two", "tf", False)),
    )


@pytest.mark.slow
def test_half_precision_stays_near(files, tmp_path):
    full = train(algpt2_pt.train, files, tmp_path / "full")
    for framework, module in (("pt", algpt2_pt.train), ("tf", algpt2_tf.train)):
        half = train(module, files, tmp_path / framework, "--precision", "bf16")
        assert half["train_loss"] != full["train_loss"]
        np.testing.assert_allclose(half["train_loss"], full["train_loss"], rtol=2e-2)
    # The weights themselves stay in full precision.
    assert {array.dtype.name for array in weights(tmp_path / "pt", "pt", False).values()} == {"float32"}
    assert {array.dtype.name for array in weights(tmp_path / "tf", "tf", False).values()} == {"float32"}


@pytest.mark.slow
def test_float16_scales_its_loss(files, tmp_path):
    full = train(algpt2_tf.train, files, tmp_path / "full")
    half = train(algpt2_tf.train, files, tmp_path / "half", "--precision", "fp16")
    np.testing.assert_allclose(half["train_loss"], full["train_loss"], rtol=2e-2)
