"""Tokenizers: trained, saved, loaded."""

import pytest
from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer

from algpt2.data.corpus import read_corpus, read_documents
from algpt2.data.tokenizer import load_tokenizer
from algpt2.data.train_tokenizer import main, train_tokenizer
from algpt2.errors import InputError


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


SPECIAL_TOKENS = ["<|endoftext|>", "<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_training_agrees_with_the_plain_library(tmp_path, add_prefix_space):
    text = "".join(read_corpus("python-docs").train)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    tokenizer = train_tokenizer(read_documents(str(tmp_path / "a.txt")), 600, SPECIAL_TOKENS, add_prefix_space)
    plain = ByteLevelBPETokenizer(add_prefix_space=add_prefix_space)
    plain.train_from_iterator([text], vocab_size=600, min_frequency=0, special_tokens=SPECIAL_TOKENS)
    assert tokenizer.get_vocab() == plain.get_vocab()
    assert tokenizer.encode(text) == plain.encode(text).ids


def test_system_a_s_tokenizer_on_the_command_line(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("the <unk> of the text , and more of the text\n" * 30)
    output = tmp_path / "tokenizer"
    arguments = ["train", "--dataset", tmp_path / "a.txt", "--vocab-size", 280, "--special-tokens", *SPECIAL_TOKENS]
    arguments = [*map(str, arguments), "--add-prefix-space", "--output-dir", str(output)]
    main(arguments)
    out = capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS) == list(range(6))
    roles = ("eos_token", "bos_token", "pad_token", "unk_token", "mask_token")
    assert [getattr(tokenizer, role) for role in roles] == ["<|endoftext|>", "<s>", "<pad>", "<unk>", "<mask>"]
    assert tokenizer.tokenize("the text") == tokenizer.tokenize(" the text")
    count = len(tokenizer.encode("the <unk> of the text , and more of the text", add_special_tokens=False))
    assert f"in 30 lines: {30 * count} tokens, {1 / count:.2%} of them <unk>; {count / 11:.3f} tokens a word" in out
    assert "Ġthe | Ġ | <unk> | Ġof" in out
    assert (output / "token_lengths.png").read_bytes().startswith(b"\x89PNG")

    before = {path.name: path.read_bytes() for path in output.iterdir()}
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2 and "--overwrite to replace it" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit:
        main([*arguments, "--overwrite", "--dataset", str(tmp_path / "b.txt")])
    assert exit.value.code == 2 and {path.name: path.read_bytes() for path in output.iterdir()} == before
    (output / "notes.txt").write_text("mine")
    main([*arguments, "--overwrite", "--vocab-size", "270"])
    assert len(AutoTokenizer.from_pretrained(output)) == 270 and (output / "notes.txt").exists()


def test_splits_on_the_command_line(tmp_path, capsys):
    main(["train", "--splits", "validation", "--vocab-size", "300", "--output-dir", str(tmp_path / "a")])
    expected = train_tokenizer(read_corpus("python-docs").validation, 300)
    assert load_tokenizer(tmp_path / "a").get_vocab() == expected.get_vocab()
    assert expected.get_vocab() != train_tokenizer(read_corpus("python-docs").train, 300).get_vocab()
    with pytest.raises(SystemExit):
        main(["train", "--splits", "dev", "--output-dir", str(tmp_path / "b")])
    assert "has no split 'dev'; it has train, validation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("special_tokens", "message"),
    [
        (["<s>"], r"<\|endoftext\|> must be among them"),
        (["<|endoftext|>", "<s>", "<s>"], "each must be there once"),
        (["<|endoftext|>"] + [f"<{i}>" for i in range(60)], "61 special tokens need at least 317"),
    ],
)
def test_wrong_special_tokens(special_tokens, message):
    with pytest.raises(InputError, match=message):
        train_tokenizer(["text"], 300, special_tokens)
