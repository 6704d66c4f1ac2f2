"""Arguments and configurations that training refuses, in both frameworks: one line, exit code 2, nothing written."""

import pytest
import wandb
from command_lines import FRAMEWORKS, run, train_arguments


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--dataset", "no/such/file.txt"], "no/such/file.txt: no such file"),
        (["--length", "33"], "--length 33 must be at least 2 and at most n_positions, 32"),
        (["--config", "no/such.json"], "no/such.json: no such file or directory"),
        (["--vocab-size", "100"], "vocab_size 100 is too small"),
        (["--warmup-steps", "13"], "--warmup-steps 13 is more than the 12 steps of the run"),
        (["--batch-size", "0"], "argument --batch-size: invalid positive integer value: '0'"),
        (["--learning-rate", "nan"], "argument --learning-rate: invalid positive number value: 'nan'"),
        (["--epochs", "1"], "not allowed with argument"),
        (["--report-to", "carrier-pigeon"], "invalid choice: 'carrier-pigeon'"),
        (["--batch-size", "100000"], "--batch-size 100000 is more than the text's"),
        (["--seed", "4294967296"], "invalid seed below 2**32 value"),
        (["--teacher", ""], "argument --teacher: is followed by an empty value; give one, or leave it out"),
        (["--sharing", "0,0,,1"], "unknown sharing pattern '0,0,,1'"),
        (["--config-override", "residual_multiplier=1e39"], "residual_multiplier must be positive and finite"),
        (["--output-dir", ".", "--overwrite"], ".: is the current directory or holds it"),
    ],
)
def test_wrong_arguments(files, framework, extra, message, tmp_path, capsys):
    code, _, err = run(capsys, f"algpt2_{framework}.train", *train_arguments(files, tmp_path / "run", *extra))
    assert code == 2 and message in err and "Traceback" not in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tokenizer", "DIR", "--vocab-size", "400"], "--vocab-size would have no effect"),
        (["--teacher", "DIR", "--config-override", "vocab_size=400"], "--teacher would have no effect: the tokens are"),
        (["--init-from", "DIR", "--vocab-size", "400"], "--vocab-size would have no effect"),
        (["--decay-steps", "4"], "--decay-steps would have no effect: it is for --lr-schedule wsd"),
        (["--optimizer", "sgd", "--adam-beta2", "0.9"], "--adam-beta2 would have no effect: sgd has no such constant"),
        (["--save-total-limit", "2"], "--save-total-limit would have no effect"),
        (["--label-column", "x"], "--label-column would have no effect: it is for --task classify"),
        (["--run-name", "x"], "--run-name would have no effect: it is for --report-to wandb"),
        (["--depth", "3", "--config-override", "n_layer=4"], "--depth would have no effect"),
        (["--sharing", "full", "--config-override", "layer_schedule=[0, 1]"], "--sharing would have no effect"),
        (["--embedding-size", "8", "--config-override", "embedding_size=9"], "--embedding-size would have no effect"),
        (["--dropout", "0.1", "--config-override", "attn_pdrop=0.2"], "--dropout would have no effect"),
        (["--streaming"], "--streaming would have no effect: it is for data sets of the hub, not python-docs"),
        (["--dataset", "TEXT", "--text-column", "a"], "--text-column would have no effect"),
        (["--warmup-steps", "3", "--warmup-ratio", "0.1"], "not allowed with argument"),
        (["--resume", "--arguments", "FILE"], "leave out --arguments"),
    ],
)
def test_arguments_without_effect_are_refused(files, framework, arguments, message, tmp_path, capsys):
    names = {"DIR": tmp_path / "model", "TEXT": files / "train.txt"}
    arguments = [names.get(argument, argument) for argument in arguments]
    code, _, err = run(capsys, f"algpt2_{framework}.train", *arguments, "--output-dir", tmp_path / "run")
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch-count", "3"], "unknown argument --epoch-count; did you mean --epochs?"),
        (["--preset", "algpt2-medum"], "invalid choice: 'algpt2-medum'; did you mean algpt2-medium?"),
        (["--optimizer", "adam"], "invalid choice: 'adam'; did you mean adamw?"),
        (["--zzz", "3"], "unknown argument --zzz; --help names those that there are"),
        (["text.txt"], "unrecognized arguments: text.txt"),
    ],
)
def test_a_mistyped_argument_is_one_line_with_what_was_meant(framework, arguments, message, capsys):
    code, out, err = run(capsys, f"algpt2_{framework}.train", *arguments)
    assert code == 2 and not out and err.count("\n") == 1 and message in err
    assert err.startswith(f"python -m algpt2_{framework}.train: error: ")


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ("[]", "expected a JSON object, found list"),
        ('{"model_type": "bert"}', "model_type is 'bert'; expected algpt2 or gpt2, or a preset of KerasHub"),
        ('{"model_type": "algpt2", "n_head": 7}', "n_embd must be divisible by n_head"),
        ('{"model_type": "algpt2", "n_embd": "wide"}', "n_embd"),
    ],
)
def test_wrong_configurations(files, stored, message, tmp_path, capsys):
    (tmp_path / "config.json").write_text(stored)
    arguments = train_arguments(files, tmp_path / "run", "--config", tmp_path / "config.json")
    code, _, err = run(capsys, "algpt2_pt.train", *arguments)
    assert code == 2 and message in err
    assert not (tmp_path / "run").exists()


def test_wandb_without_a_login(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    code, _, err = run(capsys, "algpt2_pt.train", *train_arguments(files, tmp_path / "run", "--report-to", "wandb"))
    # wandb reads its environment once.
    wandb.teardown()
    assert code == 2 and "wandb: not logged in" in err
    assert not (tmp_path / "run").exists()


def test_batches_must_divide_over_replicas(files, tmp_path, capsys):
    arguments = train_arguments(files, tmp_path / "run", "--strategy", "mirrored", "--batch-size", 3)
    code, _, err = run(capsys, "algpt2_tf.train", *arguments)
    assert not (tmp_path / "run").exists()
    assert code == 2 and "--batch-size 3 must be divisible by 2 devices" in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("batchsize: 3", "unknown argument 'batchsize'; did you mean batch_size?"),
        ("batch-size: many", "a.yaml: error: argument --batch-size: invalid positive integer value: 'many'"),
        ("preset: algpt2-tny", "did you mean algpt2-tiny?"),
        ("epochs: 1\nmax-steps: 3", "not allowed with argument"),
        ("seed: {a: 3}", "seed is {'a': 3}; expected one value"),
        ("sharing: [0, 1, 1, 0]", "sharing is [0, 1, 1, 0]; expected one value, a number or a text in quotes"),
        ("report-to: no", "report_to is False; expected one value, a number or a text in quotes"),
        ("sop: 'true'", "sop is 'true'; expected true or false"),
        ("steps: 500", "unknown argument 'steps'"),
        ("framework: pytorch", "unknown argument 'framework'"),
        ("resume: true", "resume is for the command line; leave it out"),
        ("arguments: b.yaml", "arguments is for the command line; leave it out"),
        ("max-steps: 5\nmax_steps: 7", "max_steps is given twice"),
        ("max-steps: 5\nmax-steps: 7", "max_steps is given twice"),
        ("warmup-ratio: 0.1\nwarmup-steps: 3", "not allowed with argument"),
        ("- 3", "expected arguments and their values"),
        ("a: [", "not readable as YAML"),
        ("decay-steps: 3", "--decay-steps would have no effect"),
    ],
)
def test_wrong_files_of_arguments(content, message, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text(content)
    code, _, err = run(capsys, "algpt2_pt.train", "--arguments", tmp_path / "a.yaml")
    assert code == 2 and message in err and err.count("\n") == 1
    assert "no such file" in run(capsys, "algpt2_pt.train", "--arguments", tmp_path / "b.yaml")[2]
