"""Training at a random depth of each step: the same draws in both frameworks, on replicas and after --resume."""

import pytest
import torch
from command_lines import history, run, stored_weights
from models import DEPTHS as FREE
from models import tiny_config
from numpy.random import SeedSequence, default_rng
from numpy.testing import assert_allclose, assert_array_equal

import algpt2_pt.train
import algpt2_tf.train
from algpt2.data.corpus import read_corpus
from algpt2.data.tokenizer import load_tokenizer
from algpt2.data.train_tokenizer import train_tokenizer
from algpt2_pt import ALGPT2ForPreTraining, ALGPT2LMHeadModel

pytestmark = pytest.mark.slow

TRAIN = {"pt": algpt2_pt.train, "tf": algpt2_tf.train}
# The start checkpoint is a middle_cycle:1,1,1 of four depths.
SCHEDULES = {3: [0, 1, 2], 4: [0, 1, 1, 2]}
SEED, STEPS, BLOCKS = 5, 6, 8
DRAWS = [default_rng(SeedSequence(SEED, spawn_key=(step,))) for step in range(STEPS)]
DEPTHS = [int(draw.integers(3, 5)) for draw in DRAWS]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("files")
    text = "".join(read_corpus("python-docs").train)[:8000]
    (directory / "text.txt").write_text(text, encoding="utf-8")
    tokenizer = train_tokenizer([text], 300)
    for name, dropout in (("start", 0.0), ("dropout", 0.1)):
        config = tiny_config(
            **{"vocab_size": 300, "n_positions": 16, "n_embd": 12, "n_head": 2, "initializer_range": 0.15},
            **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout),
            layer_schedule=SCHEDULES[4],
            **FREE,
        )
        torch.manual_seed(0)
        ALGPT2ForPreTraining(config).save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    return directory


def arguments(files, output, *extra, start="start", rate="1e-2"):
    return [
        *("--init-from", str(files / start), "--dataset", str(files / "text.txt"), "--output-dir", str(output)),
        *("--batch-size", str(BLOCKS), "--max-train-blocks", str(BLOCKS), "--max-steps", str(STEPS)),
        *("--learning-rate", rate, "--seed", str(SEED), "--logging-steps", "1", "--eval-steps", "6"),
        *("--random-depth", "3", *extra),
    ]


def losses(output, kind="train_loss"):
    return [record[kind] for record in history(output) if kind in record]


def test_each_step_has_the_depth_that_numpy_draws(files, tmp_path):
    # Every step has the same blocks, in some order, and changes nothing.
    algpt2_pt.train.main(arguments(files, tmp_path, rate="1e-20"))
    text = (files / "text.txt").read_text(encoding="utf-8")
    ids = load_tokenizer(files / "start")(text, return_tensors="pt").input_ids[0, : BLOCKS * 16].view(BLOCKS, 16)
    expected = {}
    for depth, schedule in SCHEDULES.items():
        model = ALGPT2LMHeadModel.from_pretrained(files / "start", layer_schedule=schedule).eval()
        expected[depth] = model(ids, labels=ids).loss.item()
    assert set(DEPTHS) == {3, 4} and abs(expected[3] - expected[4]) > 1e-3
    assert_allclose(losses(tmp_path), [expected[depth] for depth in DEPTHS], rtol=1e-5)
    assert len(losses(tmp_path, "eval_loss")) == 1


def test_both_frameworks_make_the_same_steps_on_any_number_of_replicas(files, tmp_path):
    extra = ("--sop", "--gradient-accumulation", "2", "--gradient-checkpointing")
    algpt2_pt.train.main(arguments(files, tmp_path / "pt", *extra))
    algpt2_tf.train.main(arguments(files, tmp_path / "tf", *extra, "--strategy", "mirrored"))
    for kind in ("train_loss", "eval_loss", "sop_loss"):
        assert_allclose(losses(tmp_path / "tf", kind), losses(tmp_path / "pt", kind), rtol=1e-4)


@pytest.mark.parametrize("framework", TRAIN)
def test_a_resumed_run_draws_the_same_depths(files, framework, tmp_path):
    TRAIN[framework].main(arguments(files, tmp_path, "--save-steps", "3", start="dropout"))
    expected = losses(tmp_path), stored_weights(tmp_path)
    TRAIN[framework].main(["--output-dir", str(tmp_path), "--resume", "checkpoint-3", "--max-steps", str(STEPS)])
    assert losses(tmp_path) == expected[0]
    for name, array in stored_weights(tmp_path).items():
        assert_array_equal(array, expected[1][name], err_msg=name)


@pytest.mark.parametrize("framework", TRAIN)
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--random-depth", "4"], "--random-depth 4: the model has n_layer 4; give a smaller depth"),
        (["--random-depth", "2"], "--random-depth 2: pattern 'sandwich' needs at least 3 layers"),
        (
            ["--random-depth", "2", "--config-override", "layer_schedule=[0,1,2]"],
            "pattern 'sandwich' needs at least 3 layers",
        ),
        (["--random-depth", "3", "--config-override", "layer_schedule=[0,1,1,0,2]"], "follows no named pattern"),
        (["--random-depth", "0"], "argument --random-depth"),
        (["--task", "classify"], "--random-depth is for language models"),
    ],
)
def test_depths_that_cannot_be_drawn(files, framework, extra, message, tmp_path, capsys):
    code, _, error = run(capsys, TRAIN[framework], *arguments(files, tmp_path / "run", *extra))
    assert code == 2 and message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "run").exists()
