"""The tables and the figure of a table of relaxations.py: `python benchmarks/relaxations_report.py DIR/table.jsonl`."""

import argparse
import math
import statistics
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
from plans import read_records

from algpt2.tables import markdown_table

TEXTS = ("wikitext-valid", "wikitext-test", "documentation-valid")
# The lines of the figure, each from a pattern in the names of its rows.
FAMILIES = {
    "dense GPT-2": ("gpt2", "dense"),
    "one shared block": ("shared",),
    "sandwich and middle cycle": ("sandwich", "middle"),
}


def at_best_rate(records):
    """By name, the records of all seeds at the rate at which the first seed has the least perplexity."""
    by_rate = defaultdict(list)
    for record in records:
        by_rate[record["name"].partition(" @ ")[0], record["row"]["rate"]].append(record)
    found = {}
    for (name, _), group in by_rate.items():
        if name not in found or first(group) < first(found[name]):
            found[name] = group
    return dict(sorted(found.items(), key=lambda item: item[1][0]["parameters"]))


def first(records):
    """float: the perplexity of the first seed."""
    return next(perplexities(record)[0] for record in records if record["seed"] == 0)


def perplexities(record, share="1"):
    """list of float: by `TEXTS`, after a share of the steps."""
    return [record["held out"][share][text]["perplexity"] for text in TEXTS]


def mean(values):
    """str: of some seeds, with the standard deviation between them."""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def table(found, reference):
    """The text of a table; ratios are to the perplexity `reference`."""
    rows = [("model", "parameters", "rate", "seeds", *TEXTS, "bits per byte", "ratio")]
    for name, records in found.items():
        columns = list(zip(*map(perplexities, records), strict=True))
        bits = (
            statistics.mean(record["held out"]["1"][text]["bits per byte"] for record in records) for text in TEXTS[1:]
        )
        rows.append(
            (
                name,
                f"{records[0]['parameters']:,}",
                f"{records[0]['row']['rate']:.2g}",
                len(records),
                *map(mean, columns),
                " / ".join(f"{each:.3f}" for each in bits),
                f"{statistics.mean(columns[0]) / reference:.3f}",
            )
        )
    return markdown_table(rows)


def gains(found):
    """The text of a table of how much perplexity fell over the last tenth of the steps."""
    rows = [("model", "after nine tenths", "at the end", "gain")]
    for name, records in found.items():
        if "0.9" in records[0]["held out"]:
            before, after = (perplexities(records[0], share)[0] for share in ("0.9", "1"))
            rows.append((name, f"{before:.2f}", f"{after:.2f}", f"{1 - after / before:.1%}"))
    return markdown_table(rows)


def draw(found, path):
    """A figure of perplexity over parameters, a line for each family of what is best at its size."""
    figure, axes = plt.subplots(figsize=(8, 6), layout="constrained")
    for family, starts in FAMILIES.items():
        rows = [(name, records) for name, records in found.items() if name.startswith(starts)]
        points = [
            (records[0]["parameters"] / 1e6, statistics.mean(perplexities(record)[0] for record in records))
            for _, records in rows
        ]
        front = [point for point in points if not any(p[0] <= point[0] and p[1] < point[1] for p in points)]
        (line,) = axes.plot(*zip(*front, strict=True), label=family)
        axes.plot(*zip(*points, strict=True), "o", color=line.get_color(), markersize=4)
        side = "right" if family == "dense GPT-2" else "left"
        lowest = {}
        for point, (name, _) in sorted(zip(points, rows, strict=True), reverse=True, key=lambda each: each[0][1]):
            # Labels of models of about the same size stand below each other.
            column = round(10 * point[0])
            lowest[column] = height = min(point[1], lowest.get(column, math.inf) - 0.6)
            label = f" {name.removeprefix('shared, ')} "
            axes.text(point[0], height, label, fontsize=6, color=line.get_color(), ha=side, va="center")
    axes.set(xscale="log", xlabel="parameters, millions", ylabel="perplexity, WikiText-2 valid")
    axes.set_xticks([0.5, 0.75, 1, 1.5, 2], labels=["0.5", "0.75", "1", "1.5", "2"])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--figure", type=Path, default=Path("relaxations.png"))
    arguments = parser.parse_args()
    records = [record for record in read_records(arguments.table) if record["finished"]]
    trained_on = [record for record in records if record["row"]["start"]]
    longer = [record for record in records if "million tokens" in record["name"]]
    found = at_best_rate([record for record in records if record not in trained_on and record not in longer])
    print(table(found, statistics.mean(perplexities(record)[0] for record in found["gpt2"])), end="\n\n")
    if longer := at_best_rate(longer):
        whole = next(records for name, records in longer.items() if name.startswith("gpt2"))
        print(table(longer, first(whole)), gains(longer), sep="\n\n", end="\n\n")
    if trained_on:
        # The teacher was GPT-2 at the rate that the starts in docs/results.md were made at.
        teacher = next(record for record in records if record["name"] == "gpt2 @ 0.008")
        print(table(at_best_rate(trained_on), perplexities(teacher)[0]))
    draw(found, arguments.figure)


if __name__ == "__main__":
    main()
