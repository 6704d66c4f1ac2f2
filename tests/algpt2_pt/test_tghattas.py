"""The command line of tGhattas/ALGPT2 becomes that of algpt2_pt."""

import json
from pathlib import Path

import pytest
from command_lines import run
from models import pytorch_model, random_weights, tiny_config
from tokenizers import Tokenizer

from algpt2 import parameter_count
from algpt2.data.corpus import read_corpus
from algpt2.data.tokenizer import load_tokenizer
from algpt2_pt import evaluate, run_model, train
from algpt2_pt.run_model import parser
from algpt2_pt.tghattas import train_tokenizer
from algpt2_pt.tghattas.run_model import evaluate_arguments, notes, run_directory, train_arguments

README = (
    "--batch_size 60 --num_of_epochs 6 --sequence_max_length 256 --learning_rate 0.0006 --device gpu --save_steps 2000 "
    "--dataset_path wikitext-103-v1 --tokenizer_path wikitext-103-v1"
)


def options(text, model="ALGPT2LMHeadModel"):
    return parser().parse_args(["--model_class_name", model, *text.split()])


def pairs(argv):
    """Flags and their values; flags without one have True."""
    return {
        flag: argv[i + 1] if i + 1 < len(argv) and not argv[i + 1].startswith("--") else True
        for i, flag in enumerate(argv)
        if flag.startswith("--")
    }


@pytest.mark.parametrize(
    ("model", "factorized", "expected"),
    [
        ("ALGPT2LMHeadModel", True, {"--preset": "algpt2", "--sharing": "full", "--embedding-size": "128"}),
        ("ALGPT2LMHeadModel", False, {"--preset": "algpt2", "--sharing": "full", "--embedding-size": "0"}),
        ("GPT2LMHeadModel", False, {"--preset": "gpt2", "--sharing": "none"}),
    ],
)
def test_the_published_runs(model, factorized, expected):
    asked = options(README + " --factorized_embeds" * factorized, model)
    suffix = "factorized_embeds" if factorized else "not_factorized_embeds"
    assert pairs(train_arguments(asked, "tokenizer/wikitext-103-v1", devices=2)) == {
        **expected,
        **{"--dataset": "wikitext-103-v1", "--tokenizer": "tokenizer/wikitext-103-v1", "--length": "256"},
        **{"--packing": "line", "--eval-protocol": "line", "--epochs": "6.0", "--batch-size": "120"},
        **{"--optimizer": "adamw", "--learning-rate": "0.0006", "--weight-decay": "0.01", "--lr-schedule": "linear"},
        **{"--warmup-steps": "0", "--max-grad-norm": "1.0", "--device": "auto", "--logging-steps": "100"},
        **{"--eval-steps": "2000", "--save-steps": "2000", "--report-to": "none", "--overwrite": True},
        "--output-dir": f"save_{model}-default_depth-wikitext-103-v1_{suffix}",
    }
    assert notes(asked) == []


@pytest.mark.parametrize(
    ("flags", "added", "removed"),
    [
        ("--depth 24", {"--depth": "24"}, ()),
        (
            "--minimize_dataset",
            {"--max-train-blocks": "100", "--eval-steps": "10", "--save-steps": "10"},
            (),
        ),
        ("--load_checkpoint", {"--resume": True}, ("--overwrite",)),
        ("--device cpu", {"--device": "cpu"}, ()),
        ("--hf_hub_path me/model", {"--push-to-hub": "me/model"}, ()),
        ("", {"--epochs": "1.0", "--batch-size": "32", "--learning-rate": "1e-05", "--length": "512"}, ()),
    ],
)
def test_flags_that_change_a_run(flags, added, removed):
    default, found = (pairs(train_arguments(options(text), "there")) for text in ("", flags))
    expected = {**default, **added, "--output-dir": run_directory(options(flags))}
    assert found == {flag: value for flag, value in expected.items() if flag not in removed}


def test_a_pretrained_model_brings_its_own_configuration():
    argv = train_arguments(options("--pretrained --depth 6 --hf_hub_path me/model"), "tokenizer", "checkpoint")
    found = pairs(argv)
    assert found["--init-from"] == "checkpoint" and found["--depth"] == "6"
    assert not {"--preset", "--sharing", "--embedding-size", "--push-to-hub"} & set(found)


def test_evaluation():
    argv = evaluate_arguments(options("--eval_depth 6 --dataset_path text.txt --sequence_max_length 64"), "here")
    assert argv[0] == "here"
    assert pairs(argv) == {
        **{"--dataset": "text.txt", "--protocol": "line", "--length": "64", "--batch-size": "64", "--depth": "6"}
    }
    assert "--depth" not in evaluate_arguments(options("--eval_depth 6", "GPT2LMHeadModel"), "here")


def test_flags_without_a_counterpart_are_explained():
    flags = "--load_tokenized_datasets True --save_tokenized_datasets --factorized_embeds --eval_depth 3"
    found = notes(options(flags, "GPT2LMHeadModel"))
    assert [line.partition(":")[0] for line in found] == [
        "--load_tokenized_datasets", "--save_tokenized_datasets", "--factorized_embeds", "--eval_depth",
    ]  # fmt: skip
    assert "uploaded to me/model" in notes(options("--hf_hub_path me/model"))[0]


@pytest.mark.parametrize("dataset", ["wikitext-2-v1", "text.txt", "texts/*.txt"])
def test_tokenizer_training(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("text")
    argv = train_tokenizer.tokenization_arguments(dataset)
    is_local = dataset != "wikitext-2-v1"
    assert ("--splits" in argv) != is_local
    start = argv.index("--special-tokens") + 1
    assert argv[start : start + 6] == ["<|endoftext|>", "<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    found = pairs(argv)
    assert (found["--vocab-size"], found["--add-prefix-space"], found["--dataset"]) == ("50257", True, dataset)
    assert Path(found["--output-dir"]).parent == Path("tokenizer") and "*" not in found["--output-dir"]


@pytest.fixture
def called(monkeypatch):
    """The arguments that training and evaluation are called with, instead of calling them."""
    calls = []
    monkeypatch.setattr(train, "main", lambda argv: calls.append(("train", argv)))
    monkeypatch.setattr(evaluate, "main", lambda argv: calls.append(("evaluate", argv)))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return calls


def test_training_is_called_and_then_evaluation_at_another_depth(called, text_tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text_tokenizer.save_pretrained("tokenizer/wikitext-2-v1")
    arguments = "--model_class_name ALGPT2LMHeadModel --device cpu --dataset_path wikitext-2-v1 --eval_depth 6".split()
    assert run(capsys, run_model, *arguments, "--tokenizer_path", "wikitext-2-v1")[0] == 0
    (first, training), (second, evaluation) = called
    assert (first, second) == ("train", "evaluate")
    assert pairs(training)["--tokenizer"] == "tokenizer/wikitext-2-v1" and pairs(training)["--batch-size"] == "32"
    assert evaluation[0] == pairs(training)["--output-dir"]
    called.clear()
    for hub in ([], ["--hf_hub_path", "me/model"]):
        assert run(capsys, run_model, *arguments, "--eval_only", *hub)[0] == 0
    assert [argv[0] for _, argv in called] == [evaluation[0], "me/model"]
    assert {command for command, _ in called} == {"evaluate"}


def test_a_tokenizer_that_tghattas_algpt2_wrote(called, text_tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("tokenizer").mkdir()
    text_tokenizer.backend_tokenizer.save("tokenizer/wikitext-2-v1_tokenizer.json")
    arguments = "--model_class_name GPT2LMHeadModel --device cpu --tokenizer_path wikitext-2-v1".split()
    assert run(capsys, run_model, *arguments)[0] == 0
    loaded = load_tokenizer(pairs(called[0][1])["--tokenizer"])
    assert loaded.encode("some text") == text_tokenizer.encode("some text")
    assert Tokenizer.from_file("tokenizer/wikitext-2-v1_tokenizer.json").get_vocab() == loaded.get_vocab()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tokenizer_path none", "no tokenizer there or in tokenizer/none; train one"),
        ("--tokenizer_path broken.json", "broken.json: not readable as a tokenizer"),
        ("--model_name no/such", "--model_name no/such: its tokenizer cannot be loaded"),
        ("--tokenizer_path good --pretrained --model_name unshared", "has 3 blocks, and ALGPT2LMHeadModel shares one"),
        ("--tokenizer_path good --pretrained --model_name none", "none: no such directory"),
        ("--device tpu", "invalid choice: 'tpu'"),
        ("--learning_rate 0", "invalid positive number"),
    ],
)
def test_wrong_use(flags, message, called, text_tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{")
    text_tokenizer.save_pretrained("good")
    config = tiny_config(layer_schedule=[0, 1, 2])
    pytorch_model(config, random_weights(config, "float32")).save_pretrained("unshared")
    code, _, err = run(capsys, run_model, "--model_class_name", "ALGPT2LMHeadModel", *flags.split())
    assert code == 2 and message in err and "Traceback" not in err
    assert not called


@pytest.mark.parametrize(
    ("model", "flags", "vocabulary", "parameters"),
    [
        ("ALGPT2LMHeadModel", "--factorized_embeds", 47_545, 13_503_744),
        ("ALGPT2LMHeadModel", "", 50_257, 46_473_216),
        ("GPT2LMHeadModel", "", 47_545, 122_356_992),
    ],
)
def test_the_published_parameter_counts(model, flags, vocabulary, parameters):
    from algpt2.training.model_config import model_config

    arguments = train.parser().parse_args(train_arguments(options(flags, model), "tokenizer"))
    config = model_config(arguments)
    assert (config.n_layer, config.n_embd, config.n_positions, config.resid_pdrop) == (12, 768, 1024, 0.1)
    config.vocab_size = vocabulary
    assert parameter_count(config) == parameters
    assert (arguments.warmup_steps, arguments.weight_decay, arguments.optimizer) == (0, 0.01, "adamw")


@pytest.mark.slow
def test_from_text_to_evaluation(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    Path("text.txt").write_text("".join(read_corpus("python-docs").train)[:60_000], encoding="utf-8")
    config = tiny_config(layer_schedule=[0, 0], vocab_size=400)
    pytorch_model(config, random_weights(config, "float32")).save_pretrained("start")
    monkeypatch.setattr(train_tokenizer, "VOCAB_SIZE", 400)
    assert run(capsys, train_tokenizer, "--dataset_path", "text.txt")[0] == 0
    tokenizer = load_tokenizer("tokenizer/text.txt")
    assert tokenizer.convert_tokens_to_ids(list(train_tokenizer.SPECIAL_TOKENS)) == list(range(6))
    assert tokenizer.encode("word") == tokenizer.encode(" word")
    tokenizer.save_pretrained("start")
    arguments = (
        "--model_class_name ALGPT2LMHeadModel --dataset_path text.txt --tokenizer_path text.txt --minimize_dataset "
        "--sequence_max_length 16 --learning_rate 0.01 --pretrained --model_name start --device cpu"
    ).split()
    code, out, err = run(capsys, run_model, *arguments, "--eval_depth", 3)
    assert code == 0, err
    assert "protocol line" in out
    directory = Path(run_directory(parser().parse_args(arguments)))
    recorded = json.loads((directory / "arguments.json").read_text())
    assert (recorded["packing"], recorded["eval_protocol"], recorded["max_train_blocks"]) == ("line", "line", 100)
    losses = [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]
    assert any("eval_loss" in record for record in losses)
    code, out, err = run(capsys, run_model, *arguments, "--eval_only")
    assert code == 0 and "protocol line" in out, err
