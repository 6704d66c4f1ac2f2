"""Evaluations as a table, as JSON records and as a figure."""

import math
from operator import itemgetter
from pathlib import Path

from algpt2.checkpoint import files_replaced_in
from algpt2.errors import InputError

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")
MEASURES = {"loss": ".6f", "perplexity": ".4f", "word_perplexity": ".4f", "bits_per_byte": ".6f"}


def markdown_table(rows):
    """Rows as a Markdown table with aligned columns.

    Args:
        rows: iterable of equally long iterables, printed as str, the first with the headings.

    Returns:
        str, without a line end.

    Example:
        >>> print(markdown_table([["depth", "loss"], ["6", "3.25"]]))
        | depth | loss |
        |-------|------|
        | 6     | 3.25 |
    """
    rows = [[str(cell).replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def record(evaluation, **context):
    """An `algpt2.evaluation.Evaluation` as a dict for JSON; `None` stands for what is not finite.

    Args:
        evaluation: `algpt2.evaluation.Evaluation`.
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


def difference(one, other):
    """The absolute difference of every measure of two records; `None` where either has none."""
    pairs = {name: (one[name], other[name]) for name in MEASURES}
    return {name: None if None in pair else abs(pair[0] - pair[1]) for name, pair in pairs.items()}


def evaluation_table(records):
    """Records of one protocol as a Markdown table, each with what it is compared to below it.

    Args:
        records: list of dict of `record`, with `depth` and `framework`; those compared with `compared`, the other
            record, and `difference`.

    Returns:
        str.
    """
    protocol = records[0]["protocol"]
    headings = ["depth", "framework", "tokens", "loss", f"perplexity ({protocol})", f"word perplexity ({protocol})"]
    rows = [[*headings, "bits per byte"]]
    for row in records:
        for one in (row, row.get("compared")):
            if one:
                rows.append([str(one["depth"]), one["framework"], str(one["tokens"]), *_cells(one, MEASURES)])
        if "difference" in row:
            rows.append(
                [str(row["depth"]), "difference", "", *_cells(row["difference"], dict.fromkeys(MEASURES, ".1e"))]
            )
    return markdown_table(rows)


def _cells(values, formats):
    return ["-" if values[name] is None else format(values[name], spec) for name, spec in formats.items()]


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

    path = Path(path)
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
        # Far from the depth of training perplexity may be thousands of times as large.
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:,.6g}")
    axes.grid(True, alpha=0.3)
    axes.legend()
    with files_replaced_in(path.parent) as temporary:
        figure.savefig(temporary / path.name, dpi=120)
