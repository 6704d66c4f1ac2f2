"""Training on the command line, in both frameworks."""

import importlib
import io
import json
import re
import shutil
import warnings

import numpy as np
import pytest
import tensorflow as tf
import torch
import wandb
from command_lines import FRAMEWORKS, history, run, train_arguments
from tensorflow.python.framework.config import disable_op_determinism
from transformers import AutoTokenizer, TrainingArguments

import algpt2_pt.train
from algpt2.checkpoints.config_file import read_config
from algpt2.training.given_arguments import parse_train_arguments
from algpt2.training.preparation import prepare_run
from algpt2_pt.training import Samples
from algpt2_tf.training import batches


@pytest.fixture(scope="module")
def runs(files, tmp_path_factory):
    """A run directory of each framework, with the same arguments."""
    output = tmp_path_factory.mktemp("runs")
    for framework in FRAMEWORKS:
        extra = ["--save-steps", 6] + (["--strategy", "mirrored"] if framework == "tf" else [])
        module = importlib.import_module(f"algpt2_{framework}.train")
        module.main([str(a) for a in train_arguments(files, output / framework, *extra)])
    return output


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "weights"), [("pt", "model.safetensors"), ("tf", "model.weights.h5")])
def test_run_directory(runs, framework, weights):
    directory = runs / framework
    names = {path.name for path in directory.iterdir()}
    assert names >= {
        "config.json", "generation_config.json", weights, "tokenizer.json", "tokenizer_config.json", "history.jsonl",
        "perplexity.png", "arguments.json", "checkpoint-6",
    }  # fmt: skip
    assert (directory / "perplexity.png").read_bytes().startswith(b"\x89PNG")
    assert (directory / "checkpoint-6" / weights).exists()
    config = read_config(directory)
    assert config.vocab_size == len(AutoTokenizer.from_pretrained(directory)) == 400
    assert config.eos_token_id == 0
    assert config.use_cache and read_config(directory / "checkpoint-6").use_cache


@pytest.mark.slow
def test_histories_lie_side_by_side(runs):
    pt, tf = (history(runs / framework) for framework in FRAMEWORKS)
    assert [record["step"] for record in pt] == [record["step"] for record in tf] == [4, 6, 6, 8, 12, 12]
    for a, b in zip(pt, tf, strict=True):
        assert a.keys() == b.keys()
        assert a["tokens"] == b["tokens"] == a["step"] * 4 * 32
        assert np.isclose(a.get("learning_rate", 0), b.get("learning_rate", 0), rtol=1e-5)
    for records in (pt, tf):
        losses = [record["train_loss"] for record in records if "train_loss" in record]
        assert losses[-1] < losses[0]
        assert all(np.isclose(r["eval_perplexity"], np.exp(r["eval_loss"])) for r in records if "eval_loss" in r)


def test_both_frameworks_read_the_same_batches(files, tmp_path):
    arguments = [str(a) for a in train_arguments(files, tmp_path / "run", "--sop")]
    run = prepare_run(algpt2_pt.train.parser().parse_args(arguments))
    data = Samples(run)
    assert len(data) == 48
    found = list(batches(run).as_numpy_iterator())
    assert len(found) == 12
    for name in ("input_ids", "labels", "sentence_order_label"):
        expected = torch.stack([data[i][name] for i in range(48)]).numpy()
        np.testing.assert_array_equal(np.concatenate([batch[name] for batch in found]), expected)
    # Half of the blocks are as in the text, the others have their halves swapped.
    swapped = np.concatenate([batch["sentence_order_label"] for batch in found])
    assert 10 < swapped.sum() < 38
    blocks = run.blocks.rows(run.order[np.arange(48)])[0]
    blocks[swapped == 1] = np.hstack([blocks[swapped == 1, 16:], blocks[swapped == 1, :16]])
    np.testing.assert_array_equal(np.concatenate([batch["input_ids"] for batch in found]), blocks)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_evaluation_gives_the_last_loss_of_the_history(runs, files, framework, capsys):
    directory = runs / framework
    code, out, _ = run(capsys, f"algpt2_{framework}.evaluate", directory, "--dataset", files / "valid.txt", "--json")
    assert code == 0
    found = json.loads(out.splitlines()[-1])
    assert np.isclose(found["loss"], history(directory)[-1]["eval_loss"], rtol=1e-5)
    assert np.isclose(found["perplexity"], np.exp(found["loss"]), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_same_seed_same_run(files, runs, framework, tmp_path, capsys):
    def losses(directory):
        return [record.get("train_loss", record.get("eval_loss")) for record in history(directory)]

    extra = ["--save-steps", 6, *(["--strategy", "mirrored"] if framework == "tf" else [])]
    assert run(capsys, f"algpt2_{framework}.train", *train_arguments(files, tmp_path / "again", *extra))[0] == 0
    np.testing.assert_allclose(losses(tmp_path / "again"), losses(runs / framework), rtol=1e-6)
    assert (
        run(capsys, f"algpt2_{framework}.train", *train_arguments(files, tmp_path / "other", *extra, "--seed", 8))[0]
        == 0
    )
    assert losses(tmp_path / "other")[0] != losses(tmp_path / "again")[0]


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_run_that_is_there_is_kept(files, framework, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    for overwrite in ([], ["--overwrite"]):
        code, _, err = run(capsys, f"algpt2_{framework}.train", *train_arguments(files, tmp_path, *overwrite))
        assert code == 2 and "is there already and is not a run directory" in err
    (tmp_path / "arguments.json").write_text("{}")
    code, _, err = run(capsys, f"algpt2_{framework}.train", *train_arguments(files, tmp_path))
    assert code == 2 and "--overwrite to replace it" in err
    assert (tmp_path / "thesis.txt").read_text() == "precious"
    # Also beside a run.
    code, _, err = run(capsys, f"algpt2_{framework}.train", *train_arguments(files, tmp_path, "--overwrite"))
    assert code == 2 and "holds thesis.txt, which is no part of a run; move it, or give another --output-dir" in err
    (tmp_path / "thesis.txt").unlink()
    for _ in range(2):
        code, _, err = run(capsys, f"algpt2_{framework}.train", *train_arguments(files, tmp_path, "--overwrite"))
        assert code == 0, err


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_intervals_that_do_not_divide_the_steps(files, framework, tmp_path, capsys):
    arguments = train_arguments(files, tmp_path / "run", "--logging-steps", 5, "--eval-steps", 5)
    assert run(capsys, f"algpt2_{framework}.train", *arguments)[0] == 0
    records = history(tmp_path / "run")
    assert [record["step"] for record in records if "train_loss" in record] == [5, 10, 12]
    assert [record["step"] for record in records if "eval_loss" in record] == [5, 10, 12]


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_diverged_run_fails_and_saves_no_weights(files, framework, tmp_path, capsys):
    arguments = train_arguments(files, tmp_path / "run", "--learning-rate", 1e30)
    code, _, err = run(capsys, f"algpt2_{framework}.train", *arguments)
    assert code == 1 and "the loss is nan at step" in err and "Traceback" not in err
    assert not list((tmp_path / "run").glob("model.*"))
    assert all(np.isfinite(value) for record in history(tmp_path / "run") for value in record.values())


@pytest.mark.slow
def test_unknown_fields_of_a_configuration_are_told(files, tmp_path, capsys):
    config = json.loads((files / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_heads": 8}))
    arguments = train_arguments(files, tmp_path / "run", "--config", tmp_path / "config.json")
    assert "not used: n_heads" in run(capsys, "algpt2_pt.train", *arguments)[1]


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_reports_to_wandb_offline_and_tensorboard(files, framework, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    for target in ("wandb", "tensorboard"):
        arguments = train_arguments(files, tmp_path / target, "--report-to", target)
        assert run(capsys, f"algpt2_{framework}.train", *arguments)[0] == 0
    assert list(tmp_path.rglob("offline-run-*"))
    names = set()
    for path in (tmp_path / "tensorboard").rglob("events.out.tfevents*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            names |= {value.tag for value in event.summary.value}
    assert any(name.endswith("loss") and "eval" not in name for name in names)
    assert any("eval" in name and name.endswith("perplexity") for name in names)


def parsed(framework, *argv):
    """The arguments of a new run."""
    module = importlib.import_module(f"algpt2_{framework}.train")
    return vars(parse_train_arguments(module.parser(), [str(argument) for argument in argv]))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_arguments_from_a_file_are_those_of_the_command_line(runs, framework, tmp_path):
    flags = ["--config-override", "n_head=2", "--config-override", "n_layer=3", "--max-steps", 7, "--sop"]
    flags += ["--learning-rate", "1e-05", "--warmup-ratio", 0.25, "--dataset", "a b.txt"]
    (tmp_path / "a.yaml").write_text(
        "# a comment\nconfig-override: [n_head=2, n_layer=3]\nmax_steps: 7\nsop: true\nlearning-rate: 1e-05\n"
        "warmup-ratio: 0.25\ndataset: a b.txt\noverwrite: false\ndropout: null\n"
    )
    expected = parsed(framework, *flags)
    assert parsed(framework, "--arguments", tmp_path / "a.yaml") == expected
    # Flags come on top, also where two exclude each other.
    on_top = ["--epochs", 2, "--warmup-steps", 4, "--dataset", "c"]
    found = parsed(framework, "--arguments", tmp_path / "a.yaml", *on_top)
    assert found == {
        **expected,
        "epochs": 2.0,
        "max_steps": None,
        "warmup_steps": 4,
        "warmup_ratio": None,
        "dataset": "c",
    }
    (tmp_path / "c.json").write_text('\ufeff{"overwrite": true, "max-steps": 7}', encoding="utf-8")
    found = parsed(framework, "--arguments", tmp_path / "c.json")
    assert (found["overwrite"], found["max_steps"]) == (True, 7)
    # No warm-up is not the default.
    (tmp_path / "b.yaml").write_text("warmup-steps: 0")
    assert parsed(framework, "--arguments", tmp_path / "b.yaml")["warmup_steps"] == 0
    # The record of a run of either framework says how to make the same run.
    for recorded in FRAMEWORKS:
        record = json.loads((runs / recorded / "arguments.json").read_text())
        found = parsed(framework, "--arguments", runs / recorded / "arguments.json", "--output-dir", "other")
        own = {"framework", "output_dir", "text", "steps", "fsdp", "strategy", "warmup_steps"}
        assert {k: v for k, v in found.items() if k not in own} == {k: v for k, v in record.items() if k not in own}
        assert (found["text"], found["steps"], found["output_dir"]) == (None, None, "other")


@pytest.mark.slow
def test_constants_of_adam_and_the_warm_up_are_the_same_in_both_frameworks(runs, files, tmp_path, capsys):
    constants = ["--adam-beta1", 0.8, "--adam-beta2", 0.9, "--adam-epsilon", 1e-3, "--warmup-ratio", 0.26]
    base = ["--init-from", runs / "pt", "--dataset", files / "train.txt", "--validation", files / "valid.txt"]
    base += ["--batch-size", 4, "--max-steps", 6, "--logging-steps", 1, "--save-steps", 6, "--dropout", 0]
    found = {}
    for framework in FRAMEWORKS:
        for name, extra in (("given", constants), ("default", [])):
            directory = tmp_path / framework / name
            code, _, err = run(capsys, f"algpt2_{framework}.train", *base, *extra, "--output-dir", directory)
            assert code == 0, err
            found[framework, name] = [r["train_loss"] for r in history(directory) if "train_loss" in r]
    np.testing.assert_allclose(found["pt", "given"], found["tf", "given"], rtol=1e-5)
    assert not np.allclose(found["pt", "given"], found["pt", "default"], rtol=1e-4)
    (group, _) = torch.load(tmp_path / "pt" / "given" / "checkpoint-6" / "optimizer.pt")["param_groups"]
    assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-3)
    # A warm-up of 26% of 6 steps takes 2 of them, as transformers rounds it.
    warmup = TrainingArguments(output_dir=tmp_path, warmup_steps=0.26).get_warmup_steps(6)
    rates = [r["learning_rate"] for r in history(tmp_path / "tf" / "given") if "train_loss" in r]
    assert warmup == 2 == rates.index(max(rates))


@pytest.mark.slow
def test_a_step_that_xla_compiles_computes_the_same(files, tmp_path, capsys):
    losses = {}
    # Other runs in this process have asked for determinism, with which Keras does not compile.
    disable_op_determinism()
    for name, extra in (("compiled", ["--compile"]), ("plain", [])):
        arguments = train_arguments(files, tmp_path / name, "--max-steps", 3, "--logging-steps", 1, "--dropout", 0)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Model doesn't support `jit_compile=True`")
            code, _, err = run(capsys, "algpt2_tf.train", *arguments, *extra)
        assert code == 0, err
        losses[name] = [record["train_loss"] for record in history(tmp_path / name) if "train_loss" in record]
    assert len(losses["plain"]) == 3
    np.testing.assert_allclose(losses["compiled"], losses["plain"], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_evaluation_before_the_first_step_and_the_time_that_is_left(files, framework, tmp_path, capsys):
    arguments = train_arguments(files, tmp_path / "run", "--eval-on-start", "--eval-batch-size", 3, "--save-steps", 6)
    code, out, _ = run(capsys, f"algpt2_{framework}.train", *arguments, "--learning-rate", 1e-30)
    assert code == 0
    losses = {record["step"]: record["eval_loss"] for record in history(tmp_path / "run") if "eval_loss" in record}
    # At this learning rate nothing is learned, and the number of rows at once changes no loss.
    assert list(losses) == [0, 6, 12] and np.ptp(list(losses.values())) < 1e-5
    evaluated = run(capsys, f"algpt2_{framework}.evaluate", tmp_path / "run", "--batch-size", 16, "--json")[1]
    assert np.isclose(json.loads(evaluated)["loss"], losses[12], rtol=1e-5)
    lines = [line for line in out.splitlines() if "train_loss" in line]
    assert [bool(re.search(r"  eta \d:\d\d:\d\d$", line)) for line in lines] == [True] * (len(lines) - 1) + [False]
    # A run that goes on does not begin again.
    code, _, err = run(
        capsys, f"algpt2_{framework}.train", "--output-dir", tmp_path / "run", "--resume", "--max-steps", 14
    )
    assert code == 0, err
    assert [r["step"] for r in history(tmp_path / "run") if "eval_loss" in r] == [0, 6, 12, 14]


class Terminal(io.StringIO):
    """A terminal that can be read: `screen` is what is left after all carriage returns."""

    def isatty(self):
        return True

    def screen(self):
        lines = []
        for written in self.getvalue().split("\n"):
            line = ""
            for part in written.split("\r"):
                line = part + line[len(part) :]
            lines.append(line.rstrip())
        return lines


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_bar_and_the_lines_of_a_run_do_not_write_over_each_other(files, framework, tmp_path, capsys, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.stderr", terminal)
    assert run(capsys, f"algpt2_{framework}.train", *train_arguments(files, tmp_path / "run"))[0] == 0
    screen = terminal.screen()
    lines = [line for line in screen if "_loss" in line]
    assert [line.split()[1] for line in lines] == ["4/12", "6/12", "8/12", "12/12", "12/12"], screen
    assert all(re.fullmatch(r"step \d+/12(  \w+ [\d.e+-]+)+(  eta 0:\d\d:\d\d)?", line) for line in lines), lines
    bars = [line for line in screen if "/12 [" in line]
    assert len(bars) == 1 and re.fullmatch(r"100%\|#+\| 12/12 \[.*\]", bars[0]), screen
    assert "loss: 0.0" not in terminal.getvalue()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_name_of_a_run_in_wandb(files, framework, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    names = []
    init = wandb.init
    monkeypatch.setattr(wandb, "init", lambda **options: (names.append(options["name"]), init(**options))[1])
    arguments = train_arguments(files, tmp_path / "run", "--report-to", "wandb", "--run-name", "first try")
    assert run(capsys, f"algpt2_{framework}.train", *arguments)[0] == 0
    assert names == ["first try"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_run_is_evaluated_on_its_own_text_unless_told_otherwise(runs, files, framework, tmp_path, capsys):
    def evaluated(directory, *extra):
        code, out, err = run(capsys, f"algpt2_{framework}.evaluate", directory, *extra, "--json")
        assert code == 0, err
        return json.loads(out)

    found = evaluated(runs / framework)
    assert (found["dataset"], found["protocol"], found["length"]) == (str(files / "valid.txt"), "stream", 32)
    assert np.isclose(found["loss"], history(runs / framework)[-1]["eval_loss"], rtol=1e-5)
    assert evaluated(runs / framework / "checkpoint-12")["loss"] == found["loss"]
    # The held-out part of a text, another length and another protocol.
    arguments = [
        "--config",
        files / "config.json",
        "--dataset",
        files / "train.txt",
        "--vocab-size",
        400,
        "--max-steps",
        2,
    ]
    arguments += [
        "--length",
        20,
        "--eval-protocol",
        "line",
        "--control-code",
        "<|a|>",
        "--output-dir",
        tmp_path / "run",
    ]
    assert run(capsys, f"algpt2_{framework}.train", *arguments)[0] == 0
    own = evaluated(tmp_path / "run")
    assert (own["protocol"], own["length"]) == ("line", 20)
    assert own["dataset"] == f"the held-out part of {files / 'train.txt'}"
    assert np.isclose(own["loss"], history(tmp_path / "run")[-1]["eval_loss"], rtol=1e-5)
    # What is given wins, one by one.
    other = evaluated(tmp_path / "run", "--dataset", files / "valid.txt", "--protocol", "stream")
    assert (other["dataset"], other["protocol"], other["length"]) == (str(files / "valid.txt"), "stream", 20)
    assert evaluated(tmp_path / "run", "--control-code", "<|b|>")["loss"] != own["loss"]


def test_a_held_out_text_that_has_changed_or_is_gone(runs, files, tmp_path, capsys):
    directory = tmp_path / "run"
    shutil.copytree(runs / "pt", directory)
    record = json.loads((directory / "arguments.json").read_text())
    (tmp_path / "other.txt").write_text("Another text than the one that was held out.\n" * 9)
    (directory / "arguments.json").write_text(json.dumps({**record, "validation": str(tmp_path / "other.txt")}))
    code, out, err = run(capsys, "algpt2_pt.evaluate", directory)
    assert code == 0 and "other.txt: is not what it was when the run began" in err and "other.txt, protocol" in out
    (tmp_path / "other.txt").unlink()
    code, _, err = run(capsys, "algpt2_pt.evaluate", directory)
    assert code == 2 and "other.txt: no such file" in err and "or give a --dataset" in err
    (directory / "arguments.json").write_text(json.dumps({**record, "length": "long"}))
    assert "length is 'long'" in run(capsys, "algpt2_pt.evaluate", directory)[2]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_of_a_run_that_is_not_finished_the_newest_checkpoint_is_taken(runs, framework, tmp_path, capsys):
    directory = tmp_path / "run"
    shutil.copytree(runs / framework, directory, symlinks=True)
    for file in directory.glob("model.*"):
        file.unlink()
    said = "the run is not finished; taking its newest checkpoint, checkpoint-12"
    code, out, err = run(capsys, f"algpt2_{framework}.evaluate", directory, "--json")
    assert code == 0 and said in err
    assert np.isclose(json.loads(out)["loss"], history(directory)[-1]["eval_loss"], rtol=1e-5)
    code, out, err = run(capsys, f"algpt2_{framework}.generate", directory, "The value of")
    assert code == 0 and said in err
    assert out == run(capsys, f"algpt2_{framework}.generate", runs / framework, "The value of")[1]
    shutil.rmtree(directory / "checkpoint-12")
    shutil.rmtree(directory / "checkpoint-6")
    code, _, err = run(capsys, f"algpt2_{framework}.evaluate", directory)
    assert code == 2 and "the run is not finished, and has no checkpoint yet" in err
