"""Evaluations as a table, as JSON records and as a figure."""

import math
from operator import itemgetter
from pathlib import Path

from algpt2.errors import InputError
from algpt2.files.atomic import file_replaced
from algpt2.tables import markdown_table

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")
MEASURES = {"loss": ".6f", "perplexity": ".4f", "word_perplexity": ".4f", "bits_per_byte": ".6f"}


def record(evaluation, **context):
    """An `algpt2.evaluation.perplexity.Evaluation` as a dict for JSON; `None` stands for what is not finite.

    Args:
        evaluation: `algpt2.evaluation.perplexity.Evaluation`.
        **context: what to tell beside it, such as its depth.
    """
    values = {name: getattr(evaluation, name) for name in MEASURES}
    values = {name: value if value is not None and math.isfinite(value) else None for name, value in values.items()}
    return {
        **context,
        "protocol": evaluation.protocol,
        "length": evaluation.length,
        "stride": evaluation.stride,
        "tokens": evaluation.tokens,
        **values,
    }


def evaluation_table(records):
    """Records of one protocol as a Markdown table.

    Args:
        records: list of dict of `record`, with `depth` and `framework`.

    Returns:
        str.
    """
    protocol = records[0]["protocol"]
    headings = ["depth", "framework", "tokens", "loss", f"perplexity ({protocol})", f"word perplexity ({protocol})"]
    rows = [[*headings, "bits per byte"]]
    for row in records:
        cells = ["-" if row[name] is None else format(row[name], spec) for name, spec in MEASURES.items()]
        rows.append([str(row["depth"]), row["framework"], str(row["tokens"]), *cells])
    return markdown_table(rows)


def check_figure(path):
    """Raise an InputError unless a figure can have this name.

    Args:
        path: path.
    """
    if Path(path).suffix.lower() not in FIGURE_SUFFIXES or Path(path).is_dir():
        raise InputError(f"--figure {path}: must be a file that ends in {', '.join(FIGURE_SUFFIXES)}")


def draw_depths(records, own_depth, path):
    """Draw perplexity over depth.

    Args:
        records: list of dict of `record`, with `depth`.
        own_depth: int. The depth of the checkpoint, to be marked.
        path: path of the figure.

    Raises:
        InputError: if it cannot be written.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    points = sorted((row["depth"], row["perplexity"]) for row in records if row["perplexity"] is not None)
    # A figure of its own, which leaves the backend of a notebook alone.
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    if points:
        axes.plot(*zip(*points, strict=True), "o-", markersize=4, label="same weights")
    axes.axvline(own_depth, color="gray", linestyle="--", linewidth=1, label=f"depth of the checkpoint, {own_depth}")
    axes.set(xlabel="depth (applications of blocks)", ylabel=f"perplexity (protocol {records[0]['protocol']})")
    axes.set_xticks(sorted({depth for depth, _ in points} | {own_depth}))
    axes.set_title(Path(records[0]["checkpoint"]).name)
    if points and max(points, key=itemgetter(1))[1] > 10 * min(points, key=itemgetter(1))[1]:
        # Far from the depth of training, perplexity may be thousands of times as large.
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:,.6g}")
    axes.grid(True, alpha=0.3)
    axes.legend()
    with file_replaced(path) as new:
        figure.savefig(new, dpi=120)
