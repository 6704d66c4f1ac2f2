"""A run goes on in the other framework as it would have gone on in its own."""

import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from command_lines import history, run
from models import DEPTHS, tiny_config
from safetensors.numpy import load_file
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import algpt2_pt.train
import algpt2_pt.training_run
import algpt2_tf.train
import algpt2_tf.training
import convert.__main__
from algpt2.data import TFRECORDS_FILE
from algpt2.data.corpus import read_corpus
from algpt2.training.checksums import write_checksums
from algpt2.training.optimization import OPTIMIZERS
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_pt.optimization import create_optimizer

TRAIN = {"pt": algpt2_pt.train, "tf": algpt2_tf.train}
COMMANDS = {"pt": "pt2tf", "tf": "tf2pt"}
OTHER = {"pt": "tf", "tf": "pt"}
STATE = {"pt": "optimizer.pt", "tf": "training_state.safetensors"}
# Of the configuration and of the command line, and the largest relative difference of a loss that is allowed.
VARIANTS = {
    "sgd": ({}, ["--optimizer", "sgd", "--lr-schedule", "wsd", "--decay-steps", "12"], 1e-5),
    "lamb, sentence order, in parts": (
        {},
        ["--optimizer", "lamb", "--lr-schedule", "cosine", "--sop", "--gradient-accumulation", "2"],
        1e-5,
    ),
    "adafactor, tied projections, epochs": (
        {"tie_projections": True},
        ["--optimizer", "adafactor", "--lr-schedule", "constant", "--epochs", "0.6"],
        1e-5,
    ),
    "adamw, no factorization, untied head": (
        {"embedding_size": None, "tie_word_embeddings": False, **DEPTHS},
        [],
        1e-5,
    ),
    "bfloat16": ({}, ["--precision", "bf16"], 1e-3),
}
STEPS = 30


@pytest.fixture(autouse=True, scope="module")
def no_measurement_of_the_machine():
    with pytest.MonkeyPatch.context() as patch:
        # Products of bfloat16 take minutes on some CPUs.
        for module in (algpt2_pt.training_run, algpt2_tf.training):
            patch.setattr(module, "machine_flops", lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A function from a framework, a run directory and more arguments to a finished run that saved every 10 steps."""
    files = tmp_path_factory.mktemp("files")
    (files / "text.txt").write_text("".join(read_corpus("python-docs").train)[:30000], encoding="utf-8")

    def train(framework, directory, *extra, steps=STEPS, **overrides):
        config = tiny_config(vocab_size=300, n_positions=16, initializer_range=0.15, **overrides)
        config.save_pretrained(directory.with_name(f"{directory.name}-config"))
        duration = [] if "--epochs" in extra else ["--max-steps", str(steps)]
        TRAIN[framework].main(
            [
                *("--config", f"{directory}-config", "--dataset", str(files / "text.txt"), "--batch-size", "8"),
                *("--learning-rate", "1e-2", "--weight-decay", "0.1", "--max-grad-norm", "0.5", "--logging-steps", "1"),
                *("--eval-steps", "50", "--save-steps", "10", "--output-dir", str(directory), *duration, *extra),
            ]
        )
        return directory

    return train


@pytest.fixture
def carry(capsys):
    """A function from the framework of a run and arguments of the conversion to its exit code, output and errors."""
    return lambda framework, *arguments: run(
        capsys, convert.__main__, COMMANDS[framework], *arguments, "--training-state", "--no-verify"
    )


@pytest.fixture(scope="module")
def finished(start, tmp_path_factory):
    """A finished run of each framework, not to be changed."""
    directory = tmp_path_factory.mktemp("finished")
    return {framework: start(framework, directory / framework, steps=10) for framework in TRAIN}


def losses(directory):
    return {r["step"]: (r["train_loss"], r.get("sop_loss", 0.0)) for r in history(directory) if "train_loss" in r}


def rates(directory):
    return [record["learning_rate"] for record in history(directory) if "train_loss" in record]


def difference(expected, found, first):
    """The largest relative difference of a loss of the steps from `first` on."""
    expected, found = losses(expected), losses(found)
    assert list(expected) == list(found) == list(range(1, len(expected) + 1))
    pairs = [(np.array(expected[step]), np.array(found[step])) for step in expected if step >= first]
    return max(np.abs(there - here).max() / there[0] for there, here in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("framework", TRAIN)
def test_a_hundred_steps_and_a_hundred_in_the_other(framework, start, carry, tmp_path):
    other = OTHER[framework]
    expected = start(framework, tmp_path / framework, "--save-steps", "100", steps=200)
    code, out, err = carry(framework, expected / "checkpoint-100", "--output", tmp_path / other)
    assert code == 0, err
    assert "100 of 200" in out and "adamw, 100 updates" in out and "seed" in out
    assert [record["step"] for record in history(tmp_path / other)][-1] == 100
    TRAIN[other].main(["--output-dir", str(tmp_path / other), "--resume"])
    assert difference(expected, tmp_path / other, first=101) < 1e-4
    np.testing.assert_allclose(rates(tmp_path / other), rates(expected), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_there_and_back(variant, start, carry, tmp_path):
    overrides, extra, tolerance = VARIANTS[variant]
    expected = start("pt", tmp_path / "pt", *extra, **overrides)
    assert carry("pt", expected / "checkpoint-10", "--output", tmp_path / "tf")[0] == 0
    algpt2_tf.train.main(["--output-dir", str(tmp_path / "tf"), "--resume"])
    assert (tmp_path / "tf" / "model.weights.h5").exists()
    assert difference(expected, tmp_path / "tf", first=11) < tolerance
    assert carry("tf", tmp_path / "tf" / "checkpoint-20", "--output", tmp_path / "back")[0] == 0
    algpt2_pt.train.main(["--output-dir", str(tmp_path / "back"), "--resume"])
    assert difference(expected, tmp_path / "back", first=11) < tolerance
    np.testing.assert_allclose(rates(tmp_path / "back"), rates(expected), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_files_of_pytorch_are_those_that_trainer_writes(optimizer, start, carry, tmp_path):
    expected = start("pt", tmp_path / "pt", "--optimizer", optimizer, "--sop", steps=10) / "checkpoint-10"
    carry("pt", tmp_path / "pt", "--output", tmp_path / "tf")
    carry("tf", tmp_path / "tf", "--output", tmp_path / "back")
    found = tmp_path / "back" / "checkpoint-10"
    for name, tensor in load_file(expected / "model.safetensors").items():
        np.testing.assert_array_equal(load_file(found / "model.safetensors")[name], tensor)
    schedules = [torch.load(place / "scheduler.pt", weights_only=True) for place in (expected, found)]
    assert schedules[0] == schedules[1]
    states = [torch.load(place / "optimizer.pt", weights_only=True) for place in (expected, found)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for index, moments in states[0]["state"].items():
        assert moments.keys() == states[1]["state"][index].keys()
        for name, tensor in moments.items():
            assert tensor.dtype == states[1]["state"][index][name].dtype
            assert torch.equal(tensor, states[1]["state"][index][name]), name
    recorded, written = (json.loads((place / "trainer_state.json").read_text()) for place in (expected, found))
    for key in ("epoch", "global_step", "max_steps", "num_train_epochs", "train_batch_size", "save_steps"):
        assert written[key] == recorded[key], key
    assert {path.name for path in expected.iterdir()} - {path.name for path in found.iterdir()} == {"training_args.bin"}


@pytest.mark.slow
def test_the_state_of_shards_is_read(finished, carry, tmp_path):
    carry("pt", finished["pt"], "--output", tmp_path / "expected")
    run, checkpoint = tmp_path / "run", tmp_path / "run" / "checkpoint-10"
    shutil.copytree(finished["pt"], run)
    model = ALGPT2LMHeadModel.from_pretrained(checkpoint)
    optimizer = create_optimizer(model, "adamw", 1e-2, 0.1)
    optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True))
    # As accelerate saves it under FSDP.
    torch.save(get_optimizer_state_dict(model, optimizer), checkpoint / "optimizer.bin")
    (checkpoint / "optimizer.pt").unlink()
    write_checksums(checkpoint)
    code, _, err = carry("pt", run, "--output", tmp_path / "found")
    assert code == 0, err
    expected, found = (
        load_file(tmp_path / name / "checkpoint-10" / "training_state.safetensors") for name in ("expected", "found")
    )
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor)


@pytest.mark.slow
def test_the_scale_of_float16_is_carried_and_two_replicas_go_on(start, carry, tmp_path):
    expected = start("tf", tmp_path / "tf", "--precision", "fp16", "--strategy", "mirrored", steps=12)
    assert "32768" in carry("tf", expected / "checkpoint-10", "--output", tmp_path / "pt")[1]
    scaler = torch.amp.GradScaler("cpu")
    scaler.load_state_dict(torch.load(tmp_path / "pt" / "checkpoint-10" / "scaler.pt", weights_only=True))
    assert (scaler.get_scale(), scaler._get_growth_tracker()) == (32768.0, 10)
    carry("pt", tmp_path / "pt", "--output", tmp_path / "back")
    states = [load_file(place / "checkpoint-10" / STATE["tf"]) for place in (expected, tmp_path / "back")]
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        np.testing.assert_array_equal(states[1][name], tensor)
        assert states[1][name].dtype == tensor.dtype
    algpt2_tf.train.main(["--output-dir", str(tmp_path / "back"), "--resume", "--strategy", "mirrored"])
    assert losses(tmp_path / "back") == losses(expected)


@pytest.mark.slow
def test_dropout_begins_anew_from_the_seed(start, carry, tmp_path):
    dropout = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
    start("pt", tmp_path / "pt", "--seed", "5", steps=12, **dropout)
    for name in ("one", "two"):
        carry("pt", tmp_path / "pt" / "checkpoint-10", "--output", tmp_path / name)
        algpt2_tf.train.main(["--output-dir", str(tmp_path / name), "--resume"])
    assert losses(tmp_path / "one") == losses(tmp_path / "two") != losses(tmp_path / "pt")
    state = load_file(tmp_path / "one" / "checkpoint-10" / "training_state.safetensors")
    seeds = [tensor[0] for name, tensor in state.items() if name.startswith("random_state.")]
    assert len(set(seeds)) == len(seeds) == 5

    carry("tf", tmp_path / "one" / "checkpoint-10", "--output", tmp_path / "back")
    with transformers.trainer_pt_utils.safe_globals():
        states = torch.load(tmp_path / "back" / "checkpoint-10" / "rng_state.pth", weights_only=True)
    transformers.set_seed(5)
    assert torch.equal(states["cpu"], torch.get_rng_state())


def without_checkpoint(run):
    shutil.rmtree(run / "checkpoint-10")


def without_record(run):
    (run / "arguments.json").unlink()


def without_history(run):
    (run / "history.jsonl").unlink()


def without_tokenizer(run):
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (run / "checkpoint-10" / name).unlink()


def without_state(run):
    next(path for path in map((run / "checkpoint-10").joinpath, STATE.values()) if path.exists()).unlink()


def with_half_a_state(run):
    path = next(path for path in map((run / "checkpoint-10").joinpath, STATE.values()) if path.exists())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_another_optimizer(run):
    record = json.loads((run / "arguments.json").read_text())
    (run / "arguments.json").write_text(json.dumps({**record, "optimizer": "sgd"}))


def with_another_framework(run):
    record = json.loads((run / "arguments.json").read_text())
    other = {"pytorch": "tensorflow", "tensorflow": "pytorch"}[record["framework"]]
    (run / "arguments.json").write_text(json.dumps({**record, "framework": other}))


@pytest.mark.parametrize("framework", TRAIN)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_checkpoint, "holds no checkpoint-STEP"),
        (without_record, "is not the directory of a run"),
        (without_history, "history.jsonl: no such file"),
        (without_tokenizer, "checkpoint-10: damaged (merges.txt is gone)"),
        (without_state, "goes on from the newest of the others"),
        (with_half_a_state, "goes on from the newest of the others"),
        (with_another_optimizer, "do not fit the optimizer"),
        (with_another_framework, "resume it there, or carry it over: python -m convert"),
        (shutil.rmtree, "no such directory"),
    ],
)
def test_what_is_wrong_with_a_run_is_said_and_nothing_written(framework, change, message, finished, carry, tmp_path):
    shutil.copytree(finished[framework], tmp_path / "run", symlinks=True)
    change(tmp_path / "run")
    code, _, err = carry(framework, tmp_path / "run", "--output", tmp_path / "out")
    assert code == 2 and "Traceback" not in err
    assert message in err
    assert not [path for path in tmp_path.iterdir() if path.name != "run"]


def test_tfrecords_are_not_for_pytorch(finished, carry, tmp_path):
    shutil.copytree(finished["tf"], tmp_path / "run")
    record = json.loads((tmp_path / "run" / "arguments.json").read_text())
    (tmp_path / "run" / "arguments.json").write_text(json.dumps({**record, "dataset": str(tmp_path)}))
    (tmp_path / TFRECORDS_FILE).write_text("{}")
    code, _, err = carry("tf", tmp_path / "run", "--output", tmp_path / "out")
    assert code == 2 and "was trained on TFRecords" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("framework", TRAIN)
def test_only_another_run_is_replaced_and_only_if_asked(framework, finished, carry, tmp_path):
    run = shutil.copytree(finished[framework], tmp_path / "run", symlinks=True)
    for arguments in ([], ["--output", tmp_path / "out", "--dtype", "bfloat16"]):
        code, _, err = carry(framework, run, *arguments)
        assert code == 2 and "give it an --output, and leave out --dtype" in err
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for output in (run, run / "checkpoint-10"):
        code, _, err = carry(framework, run, "--output", output, "--force")
        assert code == 2 and ("holds what the conversion reads" in err or "is not a run directory" in err)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("precious")
    code, _, err = carry(framework, run, "--output", out, "--force")
    assert code == 2 and "is not a run directory" in err and (out / "thesis.txt").exists()
    (out / "thesis.txt").unlink()
    assert carry(framework, run / "checkpoint-best", "--output", out)[0] == 0
    code, _, err = carry(framework, run, "--output", out)
    assert code == 2 and "give another --output, or --force to replace it" in err
    (out / "other").mkdir()
    (out / "other" / "model.txt").write_text("precious")
    code, _, err = carry(framework, run, "--output", out, "--force")
    assert code == 2 and "holds other/model.txt, which is no part of a run" in err
    shutil.rmtree(out / "other")
    (out / "arguments.json").write_text("{}")
    assert carry(framework, run, "--output", out, "--force")[0] == 0
    assert json.loads((out / "arguments.json").read_text())["output_dir"] == str(out)


@pytest.mark.parametrize("framework", TRAIN)
def test_a_full_disk_leaves_nothing(framework, finished, carry, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # As on a full disk, no file may grow beyond this, which the moments do.
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        code, _, err = carry(framework, finished[framework], "--output", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and "out: cannot be written" in err and "Traceback" not in err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("framework", TRAIN)
def test_a_finished_run_is_finished_in_the_other(framework, finished, carry, tmp_path, capsys):
    code, out, _ = carry(framework, finished[framework], "--output", tmp_path / "out")
    assert code == 0 and "10 of 10" in out
    TRAIN[OTHER[framework]].main(["--output-dir", str(tmp_path / "out"), "--resume"])
    assert losses(tmp_path / "out") == losses(finished[framework])
    assert Path(tmp_path / "out" / "checkpoint-best").resolve().name == "checkpoint-10"


@pytest.mark.slow
def test_both_checkpoints_compute_the_same(finished, capsys, tmp_path):
    code, out, _ = run(
        capsys, convert.__main__, "pt2tf", finished["pt"], "--training-state", "--output", tmp_path / "tf"
    )
    assert code == 0 and "largest logit difference, padded" in out
