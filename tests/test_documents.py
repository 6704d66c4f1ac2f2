"""The documents say what the code does."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from models import DEPTHS, read_checkpoint, save_checkpoint, tiny_config

from algpt2.checkpoints.weight_maps import DIALECTS, gpt2, weight_map
from algpt2.checkpoints.weights import weight_shapes
from algpt2.configuration import ALGPT2Config

ROOT = Path(__file__).parent.parent
LAYOUTS = {
    weight_map.SAME: "",
    weight_map.TRANSPOSED: "transposed",
    gpt2.ROW: "(1, n)",
    gpt2.HEADS_LAST: "(H, heads, width), transposed",
    gpt2.HEADS_FIRST: "(heads, width, H), transposed",
    gpt2.HEAD_BIAS: "(heads, width)",
}


def dialect_table(dialect):
    """The rules of a dialect as rows of Markdown."""
    rows = []
    for rule in dialect.rules:
        theirs = [rule.theirs] if isinstance(rule.theirs, str) else rule.theirs
        names = ", ".join(f"`{name}`" for name in theirs)
        rows.append(f"| {names} | `{rule.ours}` | {LAYOUTS[rule.layout]} |")
    return rows


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_every_rule_of_a_dialect_is_documented(dialect):
    text = (ROOT / "docs" / "convert.md").read_text(encoding="utf-8")
    assert dialect.name in text
    for row in dialect_table(dialect):
        assert row in text, row


@pytest.mark.slow
def test_every_canonical_name_is_documented():
    text = (ROOT / "docs" / "convert.md").read_text(encoding="utf-8")
    for options in ({}, {"embedding_size": None, "tie_word_embeddings": False}, DEPTHS):
        for name in weight_shapes(ALGPT2Config(**options)):
            assert f"`{re.sub(r'depths[.][0-9]+', 'depths.{d}', name.replace('.h.0.', '.h.{b}.'))}`" in text, name


def test_files_that_the_documents_name_are_there():
    for page in (*ROOT.glob("docs/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        named = re.findall(
            r"[`(\s]((?:tests|docs|benchmarks|configs|examples)/[\w/-]+\.(?:py|md|json|yaml|ipynb))", page.read_text()
        )
        assert [name for name in named if not (ROOT / name).exists()] == [], page.name


def run_python(page, together=False):
    """Run the blocks for Python of a page; yields the names that each leaves, by itself or after those before it."""
    names = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL):
        names = {"__name__": "documents", **(names if together else {})}
        exec(compile(code, page, "exec"), names)
        yield names


@pytest.fixture
def checkpoints(text_tokenizer, tmp_path, monkeypatch):
    """A working directory with a checkpoint under each name that the documents use."""
    monkeypatch.chdir(tmp_path)
    config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=0)
    for name in ("runs/base", "runs/mine", "checkpoint"):
        save_checkpoint(tmp_path / name, config, tokenizer=text_tokenizer)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("page", ["start-keras.md", "start-pytorch.md", "peft.md"])
def test_examples_run(page, checkpoints):
    assert list(run_python(page, together=True))


@pytest.mark.slow
def test_embeddings_are_the_same_in_both_frameworks(checkpoints):
    pytorch, keras = run_python("embeddings.md")
    for name, width in (("embeddings", checkpoints.embedding_size), ("wide", checkpoints.n_embd)):
        found = pytorch[name].numpy()
        assert found.shape == (2, width)
        np.testing.assert_allclose(keras[name], found, rtol=1e-4, atol=1e-5)
        # A text by itself, without padding.
        inputs = pytorch["tokenizer"](pytorch["texts"][0], return_tensors="pt")
        outputs = pytorch["model"](**inputs, output_hidden_states=True)
        alone = {"embeddings": outputs.last_hidden_state, "wide": outputs.hidden_states[-1]}[name].mean(1)
        np.testing.assert_allclose(found[:1], alone.detach().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_fine_tuning_changes_the_weights_and_keeps_the_tokenizer(checkpoints):
    before = read_checkpoint("runs/base")[1]
    files = []
    shutil.rmtree("runs/mine")
    for _ in run_python("fine-tuning.md"):
        files += [path.name for path in Path("runs/mine").glob("model.*")]
        after = read_checkpoint("runs/mine")[1]
        assert not np.array_equal(after["transformer.wte.weight"], before["transformer.wte.weight"])
        assert Path("runs/mine/tokenizer.json").is_file()
        shutil.rmtree("runs/mine")
    assert files == ["model.weights.h5", "model.safetensors"]
