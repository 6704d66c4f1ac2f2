"""Exported directories as generation reads them, without transformers."""

import json

import pytest
from tokenizer_directories import DIRECTORIES, TEXTS, tokenizer_state
from transformers import AutoTokenizer

from algpt2.data.tokenizer import load_tokenizer, save_tokenizer
from algpt2.errors import InputError
from algpt2.onnx.exported import LightCheckpoint


@pytest.mark.parametrize("name", DIRECTORIES)
def test_its_tokenizer_does_what_transformers_own_does(name, text_tokenizer, tmp_path):
    (tmp_path / "before").mkdir()
    DIRECTORIES[name](tmp_path / "before", tokenizer_state(text_tokenizer))
    save_tokenizer(load_tokenizer(tmp_path / "before"), tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"n_positions": 64, "vocab_size": len(theirs)}))
    found = LightCheckpoint(tmp_path).require_tokenizer()
    assert found.eos_token_id == theirs.eos_token_id
    for text in TEXTS:
        ids = found.encode(text)
        assert ids == theirs.encode(text)
        assert found([text], add_special_tokens=False)["input_ids"] == [theirs.encode(text, add_special_tokens=False)]
        for skip in (True, False):
            decoded = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert found.decode(ids, skip_special_tokens=skip) == decoded


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", None, "config.json: no such file"),
        ("config.json", {"n_positions": 0, "vocab_size": 512}, "n_positions is 0; expected a positive integer"),
        ("config.json", {"n_positions": 64}, "vocab_size is None; expected a positive integer"),
        ("tokenizer.json", None, "tokenizer.json: no such file"),
        ("tokenizer.json", {}, "not readable as a tokenizer"),
        ("config.json", {"n_positions": 64, "vocab_size": 4096}, "the tokenizer has 600 tokens, the model 4096"),
        ("tokenizer_config.json", {"eos_token": "</none>"}, "has no eos_token"),
        ("tokenizer_config.json", {"eos_token": 3}, "eos_token is 3"),
        ("tokenizer_config.json", {"eos_token": {"content": 3}}, "eos_token is {.content.: 3}"),
    ],
)
def test_damage_is_told_of(file, content, message, text_tokenizer, tmp_path):
    save_tokenizer(text_tokenizer, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"n_positions": 64, "vocab_size": 600}))
    checkpoint = LightCheckpoint(tmp_path)
    assert (checkpoint.config.n_positions, checkpoint.require_tokenizer().eos_token_id) == (64, 0)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(json.dumps(content))
    checkpoint = LightCheckpoint(tmp_path)
    with pytest.raises(InputError, match=message):
        _ = checkpoint.config, checkpoint.require_tokenizer()
