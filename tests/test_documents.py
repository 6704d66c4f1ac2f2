"""The documents say what the code does."""

from pathlib import Path

import pytest

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
    for config in (ALGPT2Config(), ALGPT2Config(embedding_size=None, tie_word_embeddings=False)):
        for name in weight_shapes(config):
            assert f"`{name.replace('.h.0.', '.h.{b}.')}`" in text, name
