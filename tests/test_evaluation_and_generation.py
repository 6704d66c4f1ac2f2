"""Evaluation and generation on the command line, in both frameworks, from the same weights."""

import io
import json
import math
import re

import numpy as np
import pytest
import torch
from command_lines import FRAMEWORKS, run
from keras_hub.samplers import GreedySampler
from models import both_models, pytorch_model, random_config, random_weights, tiny_config
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from algpt2 import layer_schedule
from algpt2.data.corpus import read_corpus
from algpt2.generation.continuation import Sampling, continue_tokens
from algpt2_pt.generation import token_generator as pt_token_generator
from algpt2_tf import drafting
from algpt2_tf.drafting import drafting_generator
from algpt2_tf.generation import select_sampler
from algpt2_tf.generation import token_generator as tf_token_generator
from algpt2_tf.weights import assign_weights

TEXT = "".join(read_corpus("python-docs").validation)[:3000]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def gpt2(text_tokenizer, tmp_path_factory):
    """A directory with transformers' own GPT-2 and a tokenizer, and the model."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("gpt2")
    config = GPT2Config(
        vocab_size=600, n_positions=32, n_embd=24, n_layer=2, n_head=3, initializer_range=0.3, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(directory)
    text_tokenizer.save_pretrained(directory)
    return directory, model


@pytest.fixture(scope="module")
def shared(text_tokenizer, tmp_path_factory):
    """A directory with a fully shared model of three layers, and its configuration."""
    directory = tmp_path_factory.mktemp("shared")
    config = tiny_config(vocab_size=600, n_positions=32, layer_schedule=[0, 0, 0], eos_token_id=0)
    pytorch_model(config, random_weights(config, "float32")).save_pretrained(directory)
    text_tokenizer.save_pretrained(directory)
    return directory, config


@torch.no_grad()
def transformers_losses(model, rows):
    """The losses that transformers' own model gives for (ids, first counted place) rows, one at a time."""
    total = count = 0
    for ids, first in rows:
        ids = torch.tensor([ids])
        labels = ids.clone()
        labels[:, :first] = -100
        counted = ids.shape[1] - max(first, 1)
        total += model(ids, labels=labels).loss.item() * counted
        count += counted
    return total, count


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["stream", "line", "sliding"])
def test_protocols_as_transformers_computes_them(gpt2, text_file, text_tokenizer, protocol, capsys):
    directory, model = gpt2
    length = 20
    tokens = [*text_tokenizer.encode(TEXT), 0]
    if protocol == "stream":
        rows = [(tokens[i : i + length], 1) for i in range(0, len(tokens), length)]
    elif protocol == "line":
        lines = [text_tokenizer.encode(line) for line in TEXT.split("\n") if line.strip()]
        rows, tokens = [(line[:length], 1) for line in lines], [token for line in lines for token in line]
    else:
        # As in transformers' guide to the perplexity of fixed-length models, with stride 8.
        rows, before = [], 0
        for start in range(0, len(tokens), 8):
            end = min(start + length, len(tokens))
            rows.append((tokens[start:end], max(1, before - start)))
            before = end
            if end == len(tokens):
                break
    total, count = transformers_losses(model, [row for row in rows if len(row[0]) > 1])
    options = ["--length", length, "--protocol", protocol, "--json"]
    for framework in FRAMEWORKS:
        extra = ["--stride", 8] if protocol == "sliding" else []
        arguments = (directory, "--dataset", text_file, *options, *extra)
        code, out, err = run(capsys, f"algpt2_{framework}.evaluate", *arguments)
        assert code == 0, err
        found = json.loads(out)
        assert found["protocol"] == protocol and found["tokens"] == count
        assert math.isclose(found["loss"], total / count, rel_tol=1e-5)
        assert math.isclose(found["perplexity"], math.exp(total / count), rel_tol=1e-4)
        words, size = len(TEXT.split()), len(TEXT.encode())
        assert math.isclose(found["word_perplexity"], math.exp(found["loss"] * len(tokens) / words), rel_tol=1e-9)
        assert math.isclose(found["bits_per_byte"], found["loss"] * len(tokens) / math.log(2) / size, rel_tol=1e-9)
        shown = run(capsys, f"algpt2_{framework}.evaluate", *[a for a in arguments if a != "--json"])[1]
        assert f"protocol {protocol}, length 20" in shown and f"perplexity {found['perplexity']:.4f}" in shown


@pytest.mark.slow
def test_depths_are_the_same_block_applied_as_often(shared, text_file, tmp_path, capsys, monkeypatch):
    directory, config = shared
    monkeypatch.chdir(tmp_path)
    records = {}
    for framework in FRAMEWORKS:
        code, out, err = run(
            capsys, f"algpt2_{framework}.evaluate", directory, "--dataset", text_file, "--depth", "5,1,3", "--json"
        )
        assert code == 0, err
        records[framework] = json.loads(out)
        assert (tmp_path / "depth-perplexity.png").read_bytes().startswith(b"\x89PNG")
        (tmp_path / "depth-perplexity.png").unlink()
    for pt, tf in zip(records["pt"], records["tf"], strict=True):
        assert pt["depth"] == tf["depth"]
        assert math.isclose(pt["loss"], tf["loss"], rel_tol=1e-5)
    assert [row["depth"] for row in records["pt"]] == [5, 1, 3]
    # A model that was built with that schedule, from the same weights.
    deep = type(config).from_dict(config.to_dict(), layer_schedule=layer_schedule("full", 5))
    deep = pytorch_model(deep, random_weights(config, "float32"))
    found = {}
    for depth, options in ((5, ["--depth", 5]), (3, [])):
        found[depth] = json.loads(
            run(capsys, "algpt2_pt.evaluate", directory, "--dataset", text_file, "--json", *options)[1]
        )["loss"]
    deep.save_pretrained(tmp_path / "deep")
    for file in directory.glob("tokenizer*"):
        (tmp_path / "deep" / file.name).write_bytes(file.read_bytes())
    expected = json.loads(run(capsys, "algpt2_pt.evaluate", tmp_path / "deep", "--dataset", text_file, "--json")[1])
    assert math.isclose(expected["loss"], found[5], rel_tol=1e-6)
    assert records["pt"][0]["loss"] == found[5] != found[3] == records["pt"][2]["loss"]


def test_several_depths_as_a_table_and_a_named_figure(shared, text_file, tmp_path, capsys):
    figure = tmp_path / "new" / "curve.svg"
    code, out, _ = run(
        capsys, "algpt2_pt.evaluate", shared[0], "--dataset", text_file, "--depth", "2,3", "--figure", figure,
        "--protocol", "line",
    )  # fmt: skip
    assert code == 0 and "<svg" in figure.read_text()
    assert "perplexity (line)" in out and [line.split()[1] for line in out.splitlines()[4:]] == ["2", "3"]


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such"], "no/such: no such directory"),
        (["RUN", "--length", "64"], "--length 64 must be"),
        (["RUN", "--dataset", "no/such.txt"], "no/such.txt: no such file"),
        (["RUN", "--stride", "3"], "--stride is for --protocol sliding"),
        (["RUN", "--protocol", "sliding", "--stride", "33"], "--stride 33 must be 1 to the tokens of a row, 32"),
        (["RUN", "--depth", "2,x"], "invalid list of depths value: '2,x'"),
        (["RUN", "--depth", "0"], "invalid list of depths value: '0'"),
        (["RUN", "--figure", "a.png"], "give several depths"),
        (["RUN", "--depth", "2,3", "--figure", "a.doc"], "--figure a.doc: must be a file that ends in .png"),
        (["GPT2", "--depth", "3"], "GPT2"),
    ],
)
def test_wrong_evaluations(shared, gpt2, framework, arguments, message, capsys):
    directories = {"RUN": str(shared[0]), "GPT2": str(gpt2[0])}
    arguments = [directories.get(argument, argument) for argument in arguments]
    code, _, err = run(capsys, f"algpt2_{framework}.evaluate", *arguments)
    assert code == 2 and directories.get(message, message) in err and "Traceback" not in err


def open_both(config, sampling, stop=None, stream=False):
    """The generators of both frameworks over the same random weights."""
    tensorflow, pytorch = both_models(config, "float32")
    # No token has this id.
    stop = config.vocab_size if stop is None else stop
    return (
        pt_token_generator(pytorch, sampling, stop),
        tf_token_generator(tensorflow, sampling, stop, stream),
        pytorch,
    )


@torch.no_grad()
def plain_greedy_search(model, ids, count, n_positions, penalty):
    """Greedy search without a cache, with the penalty as in the paper on CTRL."""
    context, new = list(ids), []
    for _ in range(count):
        if len(context) >= n_positions:
            context = context[-n_positions // 2 :]
        logits = model(torch.tensor([context])).logits[0, -1].numpy().copy()
        for token in set(context):
            logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
        new.append(int(logits.argmax()))
        context.append(new[-1])
    return new


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_search_past_the_context_in_both_frameworks(penalty):
    different = []
    for seed in range(5):
        config = type(random_config(seed)).from_dict(random_config(seed).to_dict(), n_positions=24)
        prompt = np.random.default_rng(seed).integers(config.vocab_size, size=5 + 10 * seed).tolist()
        *generators, model = open_both(config, Sampling(repetition_penalty=penalty))
        expected = plain_greedy_search(model, prompt, 50, 24, penalty)
        for generate in generators:
            found = continue_tokens(generate, prompt, 50, 24, config.vocab_size, lambda token: None)
            assert found == expected
        different.append(len(set(expected)))
    # Constant continuations would prove little.
    assert max(different) > 5


@pytest.mark.slow
def test_greedy_search_by_drafting_in_both_frameworks():
    config = tiny_config(n_positions=24, layer_schedule=[0, 1, 2, 1, 2, 1, 2, 3], initializer_range=0.1)
    draft = tiny_config(n_positions=24, layer_schedule=[0, 1, 2, 1, 2, 3])
    tensorflow, pytorch = both_models(config, "float32")
    # Short, over the edge of the context, and longer than it.
    prompts = [np.random.default_rng(length).integers(97, size=length).tolist() for length in (1, 9, 30)]
    expected = [plain_greedy_search(pytorch, prompt, 40, 24, 1.0) for prompt in prompts]
    stop = expected[1][20]
    for name, generate in {
        "pt": pt_token_generator(pytorch, Sampling(), stop, draft=draft),
        "tf": drafting_generator(tensorflow, draft, stop),
    }.items():
        for prompt, ids in zip(prompts, expected, strict=True):
            emitted = []
            found = continue_tokens(generate, prompt, 40, 24, stop, emitted.append)
            end = ids.index(stop) + 1 if stop in ids else len(ids)
            assert found == ids[:end], name
            assert emitted == [token for token in found if token != stop]
    assert tensorflow.config.n_layer == pytorch.config.n_layer == 8


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_draft_saves_steps_at_full_depth(framework, monkeypatch):
    # At depth 2 the model gives what it gives at depth 3: its blocks do nothing.
    config = tiny_config(n_positions=40, layer_schedule=[0, 0, 0])
    weights = {
        name: array * (not name.endswith(("c_proj.weight", "c_proj.bias")))
        for name, array in random_weights(config, "float32").items()
    }
    draft, depths = tiny_config(n_positions=40, layer_schedule=[0, 0]), []
    if framework == "pt":
        model = pytorch_model(config, weights)
        forward = model.transformer.forward
        monkeypatch.setattr(
            model.transformer, "forward", lambda *a, **k: depths.append(model.config.n_layer) or forward(*a, **k)
        )
        generate = pt_token_generator(model, Sampling(), 97, draft=draft)
    else:
        model = both_models(config, "float32")[0]
        assign_weights(model, weights)
        likeliest = drafting._Depth.likeliest
        monkeypatch.setattr(
            drafting._Depth, "likeliest", lambda self, *a: depths.append(self.n_layer) or likeliest(self, *a)
        )
        generate = drafting_generator(model, draft, 97)
    assert len(generate([1, 2, 3], 20, lambda token: None)) == 20
    # A look at full depth brings five tokens; in transformers two, where the draft is not sure of the first.
    assert depths.count(3) == (10 if framework == "pt" else 4)


class RecordingSampler(GreedySampler):
    """Greedy search that keeps the logits it sees."""

    def compute_probabilities(self, logits):
        self.seen = [*getattr(self, "seen", []), np.asarray(logits)]
        return super().compute_probabilities(logits)


def test_penalized_logits_of_a_padded_batch_are_those_of_transformers():
    config = tiny_config()
    tensorflow, pytorch = both_models(config, "float32")
    sampler = RecordingSampler()
    tensorflow.compile(sampler=sampler, repetition_penalty=1.3)
    lengths = np.array([4, 9, 15])
    mask = np.arange(20) < lengths[:, None]
    ids = np.random.default_rng(0).integers(1, config.vocab_size, size=(3, 20)) * mask
    outputs = np.asarray(
        tensorflow.generate_step({"token_ids": ids.astype("int32"), "padding_mask": mask})["token_ids"]
    )
    assert len(sampler.seen) == 20 - 4
    penalize = RepetitionPenaltyLogitsProcessor(1.3)
    for index, logits in enumerate(sampler.seen, start=4):
        for row in np.flatnonzero(lengths <= index):
            before = torch.tensor(outputs[row : row + 1, :index]).long()
            expected = penalize(before, pytorch(before).logits[:, -1].detach())
            np.testing.assert_allclose(logits[row], expected[0].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_generation_stops_at_the_stop_token_and_streams_before_it_ends():
    config = tiny_config(n_positions=20)
    free = open_both(config, Sampling())[0]([1, 2, 3], 12, lambda token: None)
    stop = free[6]
    assert stop not in free[:6]
    for generate in open_both(config, Sampling(), stop=stop, stream=True)[:2]:
        emitted = []
        assert generate([1, 2, 3], 12, emitted.append) == free[:7]
        assert emitted in (free[:6], free[:7])


def test_top_k_and_top_p_draw_from_the_tokens_that_transformers_keeps():
    draw = np.random.default_rng(0)
    logits = torch.tensor(draw.normal(0, 1.5, size=(1, 50)), dtype=torch.float32)
    for options in (
        {"top_k": 6},
        {"top_p": 0.6},
        {"top_k": 12, "top_p": 0.6},
        {"temperature": 0.5, "top_p": 0.8},
        {"min_p": 0.2},
        {"top_k": 12, "top_p": 0.9, "min_p": 0.15},
    ):
        warpers = LogitsProcessorList([TemperatureLogitsWarper(options.get("temperature", 1.0))])
        if "top_k" in options:
            warpers.append(TopKLogitsWarper(options["top_k"]))
        if "top_p" in options:
            warpers.append(TopPLogitsWarper(options["top_p"]))
        if "min_p" in options:
            warpers.append(MinPLogitsWarper(options["min_p"]))
        expected = torch.softmax(warpers(None, logits), dim=-1)[0].numpy()
        sampler = select_sampler(Sampling(**options, seed=1))
        probabilities = sampler.compute_probabilities(np.repeat(logits.numpy(), 20_000, axis=0))
        counts = np.bincount(np.asarray(sampler.get_next_token(probabilities)), minlength=50) / 20_000
        assert set(np.flatnonzero(counts)) == set(np.flatnonzero(expected))
        assert np.abs(counts - expected).max() < 0.02


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
