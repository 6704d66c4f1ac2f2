"""Tokenizers: trained, saved, loaded."""

import pytest
from transformers import AutoTokenizer

from algpt2.errors import InputError
from algpt2.tokenization import load_tokenizer, train_tokenizer


def test_the_tokenizer_survives_saving_and_is_transformers_own(text_tokenizer, tmp_path):
    text_tokenizer.save_pretrained(tmp_path)
    text = "def f(x):\n    return x + 1  # naïve ☃\n\n"
    for loaded in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.encode(text) == text_tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text
        assert loaded.eos_token_id == loaded.convert_tokens_to_ids("<|endoftext|>") == 0


def test_wrong_tokenizers(tmp_path):
    with pytest.raises(InputError, match="vocab_size 100 is too small"):
        train_tokenizer(["text"], 100)
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not readable as a tokenizer"):
        load_tokenizer(tmp_path)
