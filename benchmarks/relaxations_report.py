"""The table and the figure of a table of relaxations.py: `python benchmarks/relaxations_report.py DIR/table.jsonl`."""

import argparse
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


def best(records):
    """The finished records of the first seed, of each name that with the best rate, by their number of parameters."""
    found = {}
    for record in records:
        name = record["name"].partition(" @ ")[0]
        if record["finished"] and record["seed"] == 0 and not record["row"]["start"]:
            found[name] = min(record, found.get(name, record), key=perplexity)
    return dict(sorted(found.items(), key=lambda item: item[1]["parameters"]))


def perplexity(record):
    """float: on the validation text of WikiText-2."""
    return record["held out"]["1"]["wikitext-valid"]["perplexity"]


def draw(found, path):
    """A figure of perplexity over parameters, a line for each family of what is best at its size."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for family, starts in FAMILIES.items():
        rows = [(name, record) for name, record in found.items() if name.startswith(starts)]
        points = [(record["parameters"] / 1e6, perplexity(record)) for _, record in rows]
        front = [point for point in points if not any(p[0] <= point[0] and p[1] < point[1] for p in points)]
        (line,) = axes.plot(*zip(*front, strict=True), label=family)
        axes.plot(*zip(*points, strict=True), "o", color=line.get_color(), markersize=4)
        for (name, _), point in zip(rows, points, strict=True):
            axes.annotate(f" {name.removeprefix('shared, ')}", point, fontsize=6, color=line.get_color())
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
    found = best(read_records(arguments.table))
    reference = perplexity(found["gpt2"])
    rows = [("model", "parameters", "rate", *TEXTS, "bits per byte", "ratio to GPT-2", "tokens/s")]
    for name, record in found.items():
        texts = record["held out"]["1"]
        numbers = [f"{texts[text]['perplexity']:.2f}" for text in TEXTS]
        bits = " / ".join(f"{texts[text]['bits per byte']:.3f}" for text in TEXTS[1:])
        ratio, speed = f"{perplexity(record) / reference:.2f}", f"{record['tokens per second']:,.0f}"
        rows.append((name, f"{record['parameters']:,}", record["row"]["rate"], *numbers, bits, ratio, speed))
    print(markdown_table(rows))
    draw(found, arguments.figure)


if __name__ == "__main__":
    main()
