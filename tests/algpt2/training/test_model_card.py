"""The model card of a run, read back as the hub reads it."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from models import pytorch_model, random_weights, tiny_config

from algpt2 import ALGPT2Config, layer_schedule, parameter_count
from algpt2.errors import InputError
from algpt2.training.model_card import write_model_card

RECORDS = [
    {"step": 10, "tokens": 640, "train_loss": 3.0, "train_perplexity": 20.0, "tokens_per_second": 1234.0},
    {"step": 10, "tokens": 640, "eval_loss": 2.5, "eval_perplexity": 12.25},
    {"step": 20, "tokens": 1280, "eval_loss": 2.75, "eval_perplexity": 15.5, "eval_sop_accuracy": 0.625},
]
ARGUMENTS = {
    "preset": "algpt2-tiny", "dataset": "python-docs", "validation": None, "length": 32, "epochs": 3.0,
    "max_steps": 20, "batch_size": 2, "learning_rate": 0.002, "output_dir": "/home/someone/runs/card",
    "tokenizer": "/home/someone/tokenizer", "overwrite": True, "seed": 0, "weight_decay": 0.0, "sop": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a model card needs no network")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.mark.parametrize(("framework", "library"), [("pytorch", "transformers"), ("tensorflow", "keras-hub")])
def test_the_hub_reads_the_card(framework, library, tmp_path):
    config = ALGPT2Config.from_preset("algpt2-tiny", layer_schedule=layer_schedule("cycle:2", 4))
    write_model_card(tmp_path / "card", config, ARGUMENTS, RECORDS, framework)
    card = ModelCard.load(tmp_path / "card" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == (library, "text-generation")
    assert {"algpt2", framework} <= set(card.data.tags)
    assert card.data.license is None
    results = {result.metric_type: result for result in card.data.eval_results}
    assert card.data.model_name == "card"
    assert results["perplexity"].metric_value == 15.5 and results["sop_accuracy"].metric_value == 0.625
    assert "protocol `stream`, blocks of 32 tokens" in results["perplexity"].metric_name
    assert results["perplexity"].dataset_type == "python-docs"
    for text in (
        f"{parameter_count(config):,} parameters", "0, 1, 0, 1", "2 transformer blocks shared over 4 depths",
        "| steps | 20 |", "| tokens | 1,280 |", "| tokens/s, median | 1,234 |", "| `learning_rate` | 0.002 |",
        "| `seed` | 0 |", "| `weight_decay` | 0.0 |",
        "the held-out part of python-docs, protocol `stream`", "| last | 20 | 2.7500 | 15.5000 | 0.6250 |",
        "| best | 10 | 2.5000 | 12.2500 | - |", "Not stated",
    ):  # fmt: skip
        assert text in re.sub(" +", " ", card.text), text
    # Epochs were not counted, and paths of the writer's machine mean nothing to a reader.
    assert "epochs" not in card.text and "`sop`" not in card.text and "someone" not in str(card)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"dataset": "wikitext/wikitext-2-v1", "eval_protocol": "line"}, "of wikitext/wikitext-2-v1, protocol `line`"),
        ({"dataset": "text/*.txt", "validation": "/data/wiki.valid.tokens"}, "On wiki.valid.tokens, protocol"),
    ],
)  # fmt: skip
def test_the_text_and_the_protocol_are_named(arguments, text, tmp_path):
    write_model_card(tmp_path, ALGPT2Config(), arguments, RECORDS, "pytorch")
    assert text in ModelCard.load(tmp_path / "README.md").text
    assert "blocks of 1024 tokens" in ModelCard.load(tmp_path / "README.md").text


def test_a_run_without_evaluation_and_with_a_figure(tmp_path):
    (tmp_path / "perplexity.png").write_bytes(b"")
    write_model_card(tmp_path, ALGPT2Config(), {"push_to_hub": "me/model"}, RECORDS[:1], "pytorch")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results is None and "not evaluated" in card.text
    assert 'from_pretrained("me/model")' in card.text
    write_model_card(tmp_path, ALGPT2Config(), {}, RECORDS, "pytorch")
    assert "](perplexity.png)" in ModelCard.load(tmp_path / "README.md").text


@pytest.mark.parametrize("relative", [True, False])
def test_the_examples_of_the_card_run(relative, text_tokenizer, tmp_path, monkeypatch, capsys):
    config = tiny_config(vocab_size=len(text_tokenizer))
    pytorch_model(config, random_weights(config, "float32")).save_pretrained(tmp_path / "runs" / "card")
    text_tokenizer.save_pretrained(tmp_path / "runs" / "card")
    monkeypatch.chdir(tmp_path)
    # As given on the command line, or absolute: the examples run where the training ran.
    directory = Path("runs/card") if relative else tmp_path / "runs" / "card"
    write_model_card(directory, config, ARGUMENTS, RECORDS, "pytorch")
    assert (
        "# card" in (directory / "README.md").read_text() and str(tmp_path) not in (directory / "README.md").read_text()
    )
    examples = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, {})
        assert capsys.readouterr().out.startswith("The meaning of")


def test_a_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write_model_card(tmp_path / "file" / "card", ALGPT2Config(), ARGUMENTS, RECORDS, "pytorch")
