"""Tokenizers: trained, saved, loaded."""

import copy
import json
import os
import re
import shutil
from pathlib import Path

import command_lines
import pytest
from models import save_checkpoint, tiny_config
from tokenizer_directories import BEHIND, DIRECTORIES, TEXTS, tokenizer_state, write_gpt2
from tokenizers import ByteLevelBPETokenizer, Regex, pre_tokenizers
from transformers import AutoTokenizer, GPT2Tokenizer

import algpt2_pt.generate
from algpt2.data.corpus import Documents, read_corpus, read_documents
from algpt2.data.tokenized_text import tokenize
from algpt2.data.tokenizer import load_tokenizer, save_tokenizer
from algpt2.data.train_tokenizer import train_tokenizer
from algpt2.errors import InputError
from algpt2.generation.continuation import continue_text
from algpt2.tokenization import main
from algpt2_tf import TFALGPT2Tokenizer


def test_the_tokenizer_survives_saving_and_is_transformers_own(text_tokenizer, tmp_path):
    text_tokenizer.save_pretrained(tmp_path)
    text = "def f(x):\n    return x + 1  # naïve ☃\n\n"
    for loaded in (load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert loaded.encode(text) == text_tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text
        assert loaded.eos_token_id == loaded.convert_tokens_to_ids("<|endoftext|>") == 0


def test_a_tokenizer_that_was_loaded_is_written_as_it_was(text_tokenizer, tmp_path):
    save_tokenizer(text_tokenizer, tmp_path / "trained")
    save_tokenizer(load_tokenizer(tmp_path / "trained"), tmp_path / "loaded")
    trained, loaded = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("trained", "loaded")
    )
    assert loaded == trained


# Numbers, texts and lists where they do not belong, and what no file in UTF-8 can hold.
WRONG_SETTINGS = {
    "tokenizer_config.json": [
        {"model_max_length": "16"},
        {"model_max_length": [None]},
        {"model_max_length": float("nan")},
        {"model_max_length": 10**40},
        {"processor_class": "\ud800"},
        {"\udc00": 1},
        {"added_tokens_decoder": {"0": [1]}},
        {"chat_template": {"a": [[1]]}},
        {"chat_template": 5},
    ],
    "special_tokens_map.json": [{"eos_token": {"\ud800": 1}}, {"eos_token": 5}],
    "config.json": [{"a": 10**40}],
}


@pytest.mark.parametrize(
    ("name", "settings"), [(name, settings) for name, all in WRONG_SETTINGS.items() for settings in all]
)
def test_settings_that_no_tokenizer_has(name, settings, text_tokenizer, tmp_path):
    save_tokenizer(text_tokenizer, tmp_path)
    path = tmp_path / name
    stored = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**stored, **settings}))
    with pytest.raises(InputError):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("names", [[[1]], ["a\nb"], [], {"a": 1}])
def test_the_inputs_of_a_tokenizer_are_those_of_the_model(names, text_tokenizer, tmp_path):
    save_tokenizer(text_tokenizer, tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_input_names": names}))
    tokenizer = load_tokenizer(tmp_path)
    padded = tokenizer.pad([tokenizer("a b c"), tokenizer("a")], padding=True)
    assert padded.keys() == {"input_ids", "attention_mask"} and len(padded["input_ids"][1]) == len(
        padded["input_ids"][0]
    )


def test_wrong_tokenizers(tmp_path):
    with pytest.raises(InputError, match="vocab_size 100 is too small"):
        train_tokenizer(["text"], 100)
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not readable as a tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", DIRECTORIES)
def test_ids_are_those_of_transformers_wherever_a_text_is_encoded(name, text_tokenizer, tmp_path):
    DIRECTORIES[name](tmp_path, tokenizer_state(text_tokenizer))
    theirs, tokenizer = AutoTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    expected, behind = [theirs(text)["input_ids"] for text in TEXTS], BEHIND.get(name, 0)
    assert [tokenizer(text)["input_ids"] for text in TEXTS] == expected
    expected = [ids[: len(ids) - behind] for ids in expected]

    text = tokenize(Documents.of(TEXTS), tokenizer, cache=tmp_path / "cache")
    ends = [[*ids, tokenizer.eos_token_id] for ids in expected]
    assert text.tokens.tolist() == [token for ids in ends for token in ids]
    text = tokenize(["a\n  b "], tokenizer, by="line")
    lines = [theirs(line)["input_ids"] for line in ("a", "  b ")]
    assert text.tokens.tolist() == [token for ids in lines for token in ids[: len(ids) - behind]]

    prompts = []
    for prompt in TEXTS:
        continue_text(lambda ids, count, emit: prompts.append(ids) or [0] * count, tokenizer, prompt, 1, 500, str)
    assert [prompt[:-1] for prompt in prompts] == expected


def test_the_files_of_gpt2_are_enough(text_tokenizer, tmp_path):
    write_gpt2(tmp_path, tokenizer_state(text_tokenizer), special_tokens_map={"pad_token": "<s>"})
    expected, found = GPT2Tokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    assert [found(text)["input_ids"] for text in TEXTS] == [expected(text)["input_ids"] for text in TEXTS]
    assert found.special_tokens_map == expected.special_tokens_map and found.eos_token_id == 0


@pytest.mark.parametrize("framework", ["pt", "tf"])
def test_a_tokenizer_of_another_size_is_refused(framework, text_tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    other = train_tokenizer(["some text"], 300)
    other.add_tokens([f"<{i}>" for i in range(400)])
    other.save_pretrained("large")
    # Fewer tokens, but one of them has an id that the model does not know.
    state = tokenizer_state(train_tokenizer(["some text"], 300))
    state["model"]["vocab"]["Ġunused"] = 600
    os.mkdir("sparse")
    with open("sparse/tokenizer.json", "w") as file:
        json.dump(state, file)
    save_checkpoint(Path("right"), tiny_config(vocab_size=600), tokenizer=text_tokenizer)
    for name in ("large", "sparse"):
        shutil.copytree("right", f"{name}-model", ignore=shutil.ignore_patterns("tokenizer*"))
        shutil.copytree(name, f"{name}-model", dirs_exist_ok=True)
    save_checkpoint(Path("small-model"), tiny_config(vocab_size=800), tokenizer=text_tokenizer)
    train = ("--init-from", "right", "--length", 16, "--max-steps", 1, "--output-dir", "run", "--tokenizer")
    commands = {
        "large": [("train", *train, "large"), ("generate", "large-model", "a"), ("evaluate", "large-model")],
        "sparse": [("train", *train, "sparse"), ("generate", "sparse-model", "a")],
        "small": [("generate", "small-model", "a"), ("evaluate", "small-model")],
    }
    for name, message in (
        ("large", r"has 66\d tokens, the model only 600"),
        ("sparse", "has 601 tokens, the model only 600"),
        ("small", "has 600 tokens, the model 800"),
    ):
        for module, *arguments in commands[name]:
            code, _, error = command_lines.run(capsys, f"algpt2_{framework}.{module}", *arguments)
            assert code == 2 and re.search(message, error) and name in error, error
    assert not os.path.exists("run")


@pytest.mark.parametrize("framework", ["pt", "tf"])
def test_training_with_a_tokenizer_that_does_not_pad(framework, text_tokenizer, tmp_path, capsys):
    tokenizer = copy.deepcopy(text_tokenizer)
    # As GPT-2's own.
    tokenizer.pad_token = None
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    (tmp_path / "config.json").write_text(json.dumps(command_lines.TINY_CONFIG))
    (tmp_path / "text.txt").write_text("some words of a text\n" * 300)
    arguments = ("--config", tmp_path / "config.json", "--tokenizer", tmp_path / "tokenizer", "--max-steps", 1)
    data = ("--dataset", tmp_path / "text.txt", "--batch-size", 2, "--output-dir", tmp_path / "run")
    code, _, err = command_lines.run(capsys, f"algpt2_{framework}.train", *arguments, *data)
    assert code == 0, err


def test_a_tokenizer_that_fails_on_a_text(text_tokenizer, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = copy.deepcopy(text_tokenizer)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(x+)+$"), "isolated")
    save_checkpoint(Path("model"), tiny_config(vocab_size=600), tokenizer=tokenizer)
    text = "x" * 40 + "b"
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(InputError, match=r"a.txt: the tokenizer fails on the text; .*retry-limit-in-match over"):
        tokenize(read_documents("a.txt"), tokenizer, cache=tmp_path / "cache")
    with pytest.raises(SystemExit) as stopped:
        algpt2_pt.generate.main(["model", text])
    assert (
        stopped.value.code == 2 and "error: the tokenizer fails on a text; take another one" in capfd.readouterr().err
    )
    with pytest.raises(InputError, match="the tokenizer fails on a text"):
        TFALGPT2Tokenizer.from_directory("model")([text])


def test_files_that_are_too_large_to_be_those_of_a_tokenizer(text_tokenizer, tmp_path):
    text_tokenizer.save_pretrained(tmp_path)
    for name in ("tokenizer_config.json", "tokenizer.json"):
        os.truncate(tmp_path / name, 1 << 32)
        with pytest.raises(InputError, match=f"{name}: is larger than"):
            load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    (tmp_path / "tokenizer.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"tokenizer\.json: not readable as a tokenizer") as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


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
    assert "too few pairs" not in capsys.readouterr().err
    assert expected.get_vocab() != train_tokenizer(read_corpus("python-docs").train, 300).get_vocab()
    with pytest.raises(SystemExit):
        main(["train", "--splits", "dev", "--output-dir", str(tmp_path / "b")])
    assert "has no split 'dev'; it has train, validation" in capsys.readouterr().err


@pytest.mark.slow
def test_a_vocabulary_that_is_not_filled_is_said(tmp_path, capsys):
    (tmp_path / "a.txt").write_text("one two three one two three\n" * 200)
    (tmp_path / "config.json").write_text(json.dumps(command_lines.TINY_CONFIG))
    arguments = ("--dataset", tmp_path / "a.txt", "--config", tmp_path / "config.json", "--vocab-size", 9999)
    arguments = (*arguments, "--max-steps", 1, "--batch-size", 2, "--output-dir", tmp_path / "run")
    code, _, error = command_lines.run(capsys, "algpt2_pt.train", *arguments)
    assert code == 0, error
    found = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert found.model_max_length == 16
    assert f"too few pairs to merge for 9,999 tokens; the vocabulary has {len(found)}" in error


@pytest.mark.slow
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
