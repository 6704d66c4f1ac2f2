"""What is carried along from a stranger's directory: its own files, and no code."""

import json
import os
import shutil

import pytest
from models import read_checkpoint, save_checkpoint, tiny_config

from algpt2.configuration import AUTO_MAP
from algpt2.data.tokenizer import load_tokenizer, save_tokenizer
from algpt2.data.train_tokenizer import train_tokenizer
from algpt2_tf import TFALGPT2LMHeadModel
from convert.conversion import to_pt, to_tf
from convert.plain_gpt2 import to_gpt2

CARD = "---\nlicense: mit\n---\n# A model\n"
STRANGER = {
    "AutoConfig": "stranger--evil.Config",
    "AutoModelForCausalLM": "evil.Model",
    "AutoTokenizer": ["evil.T", None],
}


@pytest.fixture
def directory(text_tokenizer, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=0)
    return save_checkpoint(tmp_path / "source", config, tokenizer=text_tokenizer)


@pytest.mark.parametrize("convert", [to_pt, to_tf, to_gpt2])
def test_the_code_of_a_stranger_stays_behind(convert, directory, text_tokenizer, tmp_path):
    save_tokenizer(text_tokenizer, directory)
    for name in ("config.json", "tokenizer_config.json"):
        stored = json.loads((directory / name).read_text())
        more = {"auto_map": STRANGER, "custom_pipelines": {"text": {"impl": "evil.Pipeline"}}}
        (directory / name).write_text(
            json.dumps({**stored, **(more if name == "config.json" else {"auto_map": STRANGER})})
        )
    (directory / "evil.py").write_text("raise SystemExit")
    target = convert(directory, tmp_path / "target").directory
    texts = {path.name: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert "evil.py" not in texts and not [name for name, text in texts.items() if b"evil" in text]
    stored = json.loads((target / "config.json").read_text())
    assert stored.get("auto_map") == (None if convert is to_gpt2 else AUTO_MAP)


def test_nothing_of_a_tokenizer_that_is_replaced_stays(directory, text_tokenizer, tmp_path):
    other = train_tokenizer(["another text of other words"] * 9, vocab_size=300)
    other.chat_template = "{{ messages }}"
    model = TFALGPT2LMHeadModel.from_pretrained(
        save_checkpoint(tmp_path / "other", tiny_config(vocab_size=len(other), eos_token_id=0), tokenizer=other)
    )
    model.save_to_preset(str(tmp_path / "target"))
    save_tokenizer(other, tmp_path / "target" / "assets" / "tokenizer")
    other.save_pretrained(tmp_path / "target")
    assert list((tmp_path / "target").rglob("*.jinja"))
    to_pt(directory, tmp_path / "target", force=True)
    found = load_tokenizer(tmp_path / "target")
    assert found.encode("The value of an object") == text_tokenizer.encode("The value of an object")
    assert found.chat_template is None and not list((tmp_path / "target").rglob("*.jinja"))


@pytest.mark.parametrize(
    ("card", "is_carried"),
    [
        (lambda path: path.write_text(CARD), True),
        (lambda path: path.symlink_to(inside(path, "card.md")), True),
        (lambda path: path.symlink_to(inside(path, "../secret.md")), False),
        (lambda path: path.symlink_to("nowhere"), False),
        (lambda path: path.symlink_to("/dev/zero"), False),
        (os.mkfifo, False),
    ],
)
def test_a_model_card_that_is_a_link(card, is_carried, directory, tmp_path):
    card(directory / "README.md")
    target = to_pt(directory, tmp_path / "target").directory
    assert (target / "README.md").exists() == is_carried
    assert not is_carried or (target / "README.md").read_text() == CARD


def inside(path, name):
    (path.parent / name).write_text(CARD)
    return name


def test_a_directory_in_the_cache_of_the_hub(directory, tmp_path):
    (directory / "README.md").write_text(CARD)
    expected = read_checkpoint(directory)[1]
    repository = tmp_path / "models--someone--model"
    snapshot = repository / "snapshots" / "0123abcd"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(directory.iterdir())):
        shutil.move(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    target = to_tf(snapshot, tmp_path / "target").directory
    found = read_checkpoint(target, "tensorflow")[1]
    assert found.keys() == expected.keys() and all((found[name] == expected[name]).all() for name in found)
    assert (target / "README.md").read_text() == CARD and not (target / "README.md").is_symlink()
    assert (target / "tokenizer.json").is_file()
