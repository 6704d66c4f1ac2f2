"""Generation on the command line, in both frameworks, from the same weights."""

import argparse
import contextlib
import io
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from command_lines import FRAMEWORKS, run
from models import tiny_config
from transformers import AutoTokenizer

import algpt2_tf.generation
from algpt2.generation.command import read_prompts
from algpt2_pt import ALGPT2ForSequenceClassification

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_generation(shared, framework, capsys):
    arguments = (f"algpt2_{framework}.generate", shared[0], "The value of", "--max-new-tokens", 40)
    code, out, err = run(capsys, *arguments)
    assert code == 0 and out.startswith("The value of"), err
    assert run(capsys, *arguments, "--stream")[1] == out
    sampled = [run(capsys, *arguments, "--temperature", 5.0, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]
    code, drafted, err = run(capsys, *arguments, "--draft-depth", 2)
    assert (code, drafted) == (0, out) and re.search(r"^40 tokens in .* s, .* tokens/s$", err, re.MULTILINE), err
    # Among one candidate there is nothing to draw.
    assert run(capsys, *arguments, "--top-k", 1)[1] == out
    assert run(capsys, *arguments, "--top-k", 10**6, "--top-p", 1e-6)[1] == out


@pytest.mark.parametrize("error", [None, ValueError])
def test_tensorflow_does_not_optimize_graphs_that_run_once(error, monkeypatch):
    def disabled():
        return tf.config.optimizer.get_experimental_options().get("disable_meta_optimizer", False)

    def generate(*_):
        assert disabled()
        if error:
            raise error

    monkeypatch.setattr(algpt2_tf.generation, "run_generation", generate)
    with pytest.raises(error) if error else contextlib.nullcontext():
        algpt2_tf.generation.run(argparse.Namespace(device="cpu"))
    assert not disabled()


@pytest.mark.slow
def test_the_same_greedy_text_in_both_frameworks_from_a_prompt_file(shared, tmp_path, capsys):
    prompts = ["The value of", "A naïve object ☃", "word " * 60]
    (tmp_path / "prompts.txt").write_text("\n\n".join(prompts) + "\n", encoding="utf-8")
    arguments = ["--prompt-file", tmp_path / "prompts.txt", "--max-new-tokens", 45]
    for extra in ([], ["--repetition-penalty", 1.4]):
        (_, pt, err), (_, tf, _) = (
            run(capsys, f"algpt2_{f}.generate", shared[0], *arguments, *extra) for f in FRAMEWORKS
        )
        assert pt == tf
        assert [f"=== prompt {i}, sample 1 ===\n{prompt}" in pt for i, prompt in enumerate(prompts, 1)] == [True] * 3
        assert "the context 32: continuing its last 16" in err


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_terminal_sees_text_as_it_comes(shared, framework, capsys, monkeypatch):
    class Terminal(io.StringIO):
        parts = ()

        def isatty(self):
            return True

        def write(self, text):
            self.parts += (text,)

    arguments = (shared[0], "The value of", "--max-new-tokens", 40, "--temperature", 2.0, "--num-samples", 2)
    expected = run(capsys, f"algpt2_{framework}.generate", *arguments)[1]
    texts = expected.split("=== prompt 1, sample 2 ===\n")
    assert len(texts) == 2 and texts[0].split("===\n")[1] != texts[1]
    for option in ([], ["--no-stream"]):
        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", terminal)
        run(capsys, f"algpt2_{framework}.generate", *arguments, *option)
        assert "".join(terminal.parts) == expected
        assert (len(terminal.parts) > 20) == (not option)


class Typed(io.TextIOWrapper):
    """Standard input: what is typed on a terminal, or comes from a pipe."""

    def __init__(self, text, is_terminal=True):
        super().__init__(io.BytesIO(text.encode()), encoding="utf-8")
        self.is_terminal = is_terminal

    def isatty(self):
        return self.is_terminal


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_beams_find_the_text_that_transformers_finds(gpt2, text_tokenizer, framework, capsys):
    directory, model = gpt2
    prompt = "The value of"
    ids = text_tokenizer(prompt, return_tensors="pt")
    expected = model.generate(**ids, num_beams=4, do_sample=False, max_new_tokens=24, eos_token_id=None)[0]
    greedy = model.generate(**ids, do_sample=False, max_new_tokens=24, eos_token_id=None)[0]
    assert 0 not in expected and expected.tolist() != greedy.tolist()
    code, out, err = run(
        capsys, f"algpt2_{framework}.generate", directory, prompt, "--num-beams", 4, "--max-new-tokens", 24, "--stream"
    )
    assert (code, out) == (0, f"{text_tokenizer.decode(expected)}\n"), err


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_continuation_ends_before_a_stop_text(shared, framework, capsys):
    arguments = (f"algpt2_{framework}.generate", shared[0], "The value of", "--max-new-tokens", 40)
    whole = run(capsys, *arguments)[1]
    start = next(i for i in range(30, len(whole)) if whole[i : i + 2].isalpha() and whole.index(whole[i : i + 2]) == i)
    stop = whole[start : start + 2]
    for extra in ([], ["--stream"]):
        out = run(capsys, *arguments, "--stop", "no such text", "--stop", stop, *extra)[1]
        assert out == f"{whole[:start]}\n"


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_prompt_from_standard_input(shared, framework, capsys, monkeypatch):
    expected = run(capsys, f"algpt2_{framework}.generate", shared[0], "The value\nof")[1]
    for prompt in ([], ["-"]):
        monkeypatch.setattr("sys.stdin", Typed("The value\nof\n", is_terminal=False))
        assert run(capsys, f"algpt2_{framework}.generate", shared[0], *prompt)[1] == expected


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_conversation_goes_on_from_all_of_its_text(shared, framework, capsys, monkeypatch):
    """With a model that always says `!`: random weights say bytes that are no characters."""
    tokenizer, contexts = AutoTokenizer.from_pretrained(shared[0]), []

    def generate(context, count, emit):
        contexts.append(tokenizer.decode(context))
        return tokenizer.encode("!")

    monkeypatch.setattr(f"algpt2_{framework}.generation.token_generator", lambda *arguments, **options: generate)
    monkeypatch.setattr("sys.stdin", Typed("The value\nan object\n", is_terminal=False))
    options = ("--max-new-tokens", 1, "--interactive")
    assert run(capsys, f"algpt2_{framework}.generate", shared[0], *options)[:2] == (0, "!\n!\n")
    assert contexts == ["The value", "The value!\nan object"]


def drain(stream):
    """Read what a process writes, until it is silent for a second."""
    while select.select([stream], [], [], 1)[0]:
        assert stream.read(4096)


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_ctrl_c_ends_a_continuation_and_not_the_conversation(shared, framework):
    command = [sys.executable, "-m", f"algpt2_{framework}.generate", shared[0], "--interactive", "--stream"]
    process = subprocess.Popen(
        [*command, "--max-new-tokens", "1000000"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    )
    for line in (b"The value of\n", b"an object\n"):
        process.stdin.write(line)
        # The continuation has begun.
        assert process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        drain(process.stdout)
        assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=60) == 0


def test_prompts_are_the_lines_of_a_file_whatever_ends_them(tmp_path):
    (tmp_path / "prompts.txt").write_bytes(b"one\rtwo\r\n\nthree\x0cstill three")
    assert read_prompts(tmp_path / "prompts.txt") == ["one", "two", "three\x0cstill three"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such", "text"], "no/such: no such directory"),
        (["RUN", ""], "the prompt has 0 tokens"),
        (["RUN", "\udcff"], "is not valid Unicode text"),
        (["RUN", "text", "--temperature", "0"], "invalid positive number"),
        (["RUN", "text", "--top-p", "1.5"], "invalid probability above 0"),
        (["RUN", "text", "--repetition-penalty", "0"], "invalid positive number"),
        (["RUN", "text", "--num-samples", "2"], "--num-samples 2: a search would give the same text"),
        (["RUN"], "there is no prompt; give one, --prompt-file, --interactive, or text on standard input"),
        (["RUN", "text", "--min-p", "2"], "invalid probability above 0"),
        (["RUN", "text", "--draft-depth", "2", "--top-k", "5"], "--draft-depth 2 is for greedy search"),
        (["RUN", "text", "--draft-depth", "2", "--num-beams", "2"], "--draft-depth 2 is for greedy search"),
        (["RUN", "text", "--draft-depth", "3"], "--draft-depth 3: the model has n_layer 3; give a smaller depth"),
        (["RUN", "text", "--stop", ""], "--stop is followed by an empty text"),
        (["RUN", "text", "--num-beams", "3", "--top-k", "2"], "--num-beams 3 searches the likeliest text"),
        (["RUN", "text", "--num-beams", "3", "--num-samples", "2"], "a search would give the same text every time"),
        (["RUN", "--interactive", "--prompt-file", "FILE"], "--interactive reads what is typed"),
        (["RUN", "text", "--device", "gpu"], "finds no GPU"),
        (["RUN", "text", "--max-tokens", "5"], "unknown argument --max-tokens; did you mean --max-new-tokens?"),
        (["RUN", "text", "--prompt-file", "FILE"], "--prompt-file: not allowed with a prompt"),
        (["RUN", "--prompt-file", "FILE", "--top-k", "2", "text"], "--prompt-file: not allowed with a prompt"),
        (["RUN", "--prompt-file", "no/such.txt"], "no/such.txt: cannot be read (No such file or directory)"),
        (["RUN", "--prompt-file", "EMPTY"], "holds no prompt"),
        (["RUN", "--prompt-file", "BINARY"], "not UTF-8 text"),
        (["RUN", "--prompt-file", "."], ".: cannot be read"),
    ],
)
def test_wrong_generations(shared, arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", Typed(""))
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    names = {"RUN": shared[0], "FILE": "f", "EMPTY": tmp_path / "empty", "BINARY": tmp_path / "binary"}
    for framework in FRAMEWORKS:
        code, out, err = run(capsys, f"algpt2_{framework}.generate", *[names.get(a, a) for a in arguments])
        assert code == 2 and not out and message in err and "Traceback" not in err


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_a_classifier_says_nothing_of_the_next_token(command, framework, text_tokenizer, capsys, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=0, num_labels=3)
    ALGPT2ForSequenceClassification(config).save_pretrained(tmp_path)
    text_tokenizer.save_pretrained(tmp_path)
    code, out, err = run(capsys, f"algpt2_{framework}.{command}", tmp_path, *(["The"] if command == "generate" else []))
    assert code == 2 and not out and "is of ALGPT2ForSequenceClassification; expected a language model" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("[]", 2), ("{", 2), ('{"cache_implementation": "none such"}', 2), ('{"early_stopping": "sometimes"}', 2),
        ('{"top_k": "few"}', 2), ('{"max_length": "long"}', 2),
        ('{"num_beams": 4, "num_return_sequences": 3, "top_k": 7, "max_length": 5}', 0),
        ('{"eos_token_id": [7, 8], "return_dict_in_generate": true, "repetition_penalty": 3.0}', 0),
    ],
)  # fmt: skip
def test_the_command_line_alone_says_how_to_generate(shared, content, code, tmp_path, capsys):
    expected = run(capsys, "algpt2_pt.generate", shared[0], "The value of")[1]
    for file in shared[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "generation_config.json").write_text(content)
    found, out, err = run(capsys, "algpt2_pt.generate", tmp_path, "The value of")
    assert found == code and "Traceback" not in err
    assert out == expected if code == 0 else "generation_config.json: " in err
