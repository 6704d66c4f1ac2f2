"""The history of one or several runs as a figure, and several runs as a table."""

import csv
import json
import math
import os
import statistics
from dataclasses import dataclass
from pathlib import Path

from algpt2.checkpoint import CONFIG_FILE, TOKENIZER_FILE, files_replaced_in, read_config
from algpt2.errors import InputError
from algpt2.history import HISTORY_FILE, read_history
from algpt2.reporting import markdown_table
from algpt2.tokenization import tokenizer_hash
from algpt2.train_arguments import ARGUMENTS_FILE
from algpt2.weights import parameter_count

# What the text that runs are evaluated on depends on.
TEXT_ARGUMENTS = ("dataset", "validation", "text_column", "detokenize", "control_code")
COLUMNS = {
    "run": "run",
    "framework": "framework",
    "parameters": "parameters",
    "steps": "steps",
    "tokens": "tokens",
    "tokens_per_second": "tokens/s",
    "protocol": "protocol",
    "best_eval_perplexity": "best eval ppl",
    "best_step": "at step",
    "last_eval_perplexity": "last eval ppl",
    "last_step": "at step",
    "last_train_perplexity": "last train ppl",
}


@dataclass(frozen=True)
class FinishedRun:
    """What a run directory tells of its run, finished or still going.

    Args:
        label: str. The shortest end of its path that tells it from the others.
        arguments: dict. The command line.
        records: list of dict. The history.
        parameters: int, or `None` while there is no configuration.
        tokenizer: str. A hash of the tokenizer, or `None` if there is none.
    """

    label: str
    arguments: dict
    records: list
    parameters: int | None
    tokenizer: str | None

    @property
    def protocol(self):
        """str: how the text was cut to evaluate."""
        return self.arguments.get("eval_protocol") or "stream"

    def row(self):
        """dict: the run's line of the table, `None` for what is not known."""
        evaluations = [record for record in self.records if "eval_perplexity" in record]
        training = [record for record in self.records if "train_perplexity" in record]
        speeds = [record["tokens_per_second"] for record in self.records if "tokens_per_second" in record]
        best = min(evaluations, key=lambda record: record["eval_perplexity"], default={})
        last = evaluations[-1] if evaluations else {}
        values = (
            self.label,
            self.arguments.get("framework"),
            self.parameters,
            max(record["step"] for record in self.records),
            max(record["tokens"] for record in self.records),
            statistics.median(speeds) if speeds else None,
            self.protocol,
            best.get("eval_perplexity"),
            best.get("step"),
            last.get("eval_perplexity"),
            last.get("step"),
            training[-1]["train_perplexity"] if training else None,
        )
        return dict(zip(COLUMNS, values, strict=True))


def read_runs(directories):
    """The runs of some run directories.

    Args:
        directories: list of path.

    Returns:
        list of `FinishedRun`.

    Raises:
        InputError: if one is no run directory, is damaged or is given twice.
    """
    runs = []
    for directory, label in zip(map(Path, directories), labels(directories), strict=True):
        if not directory.is_dir():
            raise InputError(f"{directory}: no such directory")
        if not (directory / ARGUMENTS_FILE).is_file():
            raise InputError(f"{directory}: not a run directory, which holds {ARGUMENTS_FILE} and {HISTORY_FILE}")
        try:
            arguments = json.loads((directory / ARGUMENTS_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{directory / ARGUMENTS_FILE}: not readable as JSON ({error})") from error
        if not isinstance(arguments, dict):
            raise InputError(f"{directory / ARGUMENTS_FILE}: expected a JSON object")
        has_config = (directory / CONFIG_FILE).is_file()
        runs.append(
            FinishedRun(
                label,
                arguments,
                read_history(directory / HISTORY_FILE),
                parameter_count(read_config(directory)) if has_config else None,
                _tokenizer_hash(directory / TOKENIZER_FILE),
            )
        )
    return runs


def labels(directories):
    """The shortest ends of some paths that tell them apart.

    Args:
        directories: list of path.

    Returns:
        list of str.

    Raises:
        InputError: if two are the same.

    Example:
        >>> labels(["runs/gpt2", "old/runs/shared", "runs/shared/"])[:2]
        ['gpt2', 'old/runs/shared']
    """
    paths = [Path(os.path.abspath(directory)).parts for directory in directories]
    if len(set(paths)) < len(paths):
        raise InputError("the same run is given twice; give every run once")
    result = []
    for path in paths:
        others = [other for other in paths if other != path]
        count = 1
        while any(other[-count:] == path[-count:] for other in others):
            count += 1
        result.append(str(Path(*path[-count:])))
    return result


def draw_perplexity(histories, path, protocol="stream"):
    """Draw perplexity over steps and over tokens: training and evaluation of one run, or the evaluations of several.

    Args:
        histories: dict of str to list of dict. The records of `read_history` by the label of their run.
        path: path of the PNG file to write.
        protocol: str. The protocol of the evaluations, for the axis.

    Raises:
        InputError: if the file cannot be written.
    """
    # A Figure of its own needs no display and leaves pyplot, which a notebook may use, as it is.
    from matplotlib import rcParams
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    curves = list(_curves(histories))
    colors, styles = rcParams["axes.prop_cycle"].by_key()["color"], ("-", "--", ":", "-.")
    for axes, key in zip(panels, ("step", "tokens"), strict=True):
        for number, (label, value, records) in enumerate(curves):
            points = [(record[key], record[value]) for record in records if value in record]
            axes.plot(
                *zip(*points, strict=True),
                label=label,
                color=colors[number % len(colors)],
                linestyle=styles[number // len(colors) % len(styles)],
                marker="o" if value == "eval_perplexity" else None,
                markersize=3,
            )
        axes.set(xlabel=key, yscale="log")
        axes.grid(True, alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    _label_perplexities(panels[0])
    single = len(histories) == 1
    panels[0].set_ylabel(f"{'perplexity' if single else 'evaluation perplexity'} ({protocol})")
    if single:
        figure.suptitle(next(iter(histories)))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    with files_replaced_in(Path(path).parent) as temporary:
        figure.savefig(temporary / Path(path).name, dpi=120)


def add_arguments(parser):
    """Add the arguments of the comparison to a command line.

    Args:
        parser: `argparse.ArgumentParser`.
    """
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory, of either framework")
    parser.add_argument(
        "--output-dir",
        default="runs/comparison",
        metavar="DIR",
        help="where comparison.md, comparison.csv and comparison.png go",
    )


def compare(arguments):
    """Write a figure and a table of several runs, and print the table.

    Args:
        arguments: `argparse.Namespace` with the `runs` and the `output_dir` of `add_arguments`.

    Raises:
        InputError: if a run cannot be read or the directory not be written.
    """
    runs = read_runs(arguments.runs)
    rows = [run.row() for run in runs]
    table = markdown_table([COLUMNS.values(), *([_cell(value) for value in row.values()] for row in rows)]) + "\n"
    text = table + "".join(f"\n{note}\n" for note in _notes(runs))
    protocols = dict.fromkeys(run.protocol for run in runs)
    directory = Path(arguments.output_dir)
    with files_replaced_in(directory) as temporary:
        (temporary / "comparison.md").write_text(text, encoding="utf-8")
        with (temporary / "comparison.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        draw_perplexity(
            {run.label: run.records for run in runs}, temporary / "comparison.png", protocol=", ".join(protocols)
        )
    print(text, end="")
    print(f"\nwrote {directory}")


def _curves(histories):
    """Label, key and records of every curve; a run without evaluations shows its training instead."""
    for label, records in histories.items():
        keys = [key for key in ("eval_perplexity", "train_perplexity") if any(key in record for record in records)]
        for key in keys if len(histories) == 1 else keys[:1]:
            name = "validation" if key == "eval_perplexity" else "train"
            if len(histories) > 1:
                name = label if name == "validation" else f"{label} (train)"
            # The perplexity of a loss above 700 is infinite.
            yield name, key, [record for record in records if math.isfinite(record.get(key, math.inf))]


def _label_perplexities(axes):
    """Number a logarithmic axis of perplexities, also where it spans less than a decade."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    low, high = axes.get_ylim()
    fine, coarse = (1, 1.5, 2, 3, 4, 6), (1, 2, 5)
    axes.yaxis.set_major_locator(
        LogLocator(subs=fine if high < 100 * low else coarse) if high > 4 * low else MaxNLocator(8)
    )
    axes.yaxis.set_major_formatter("{x:,.4g}" if high < 1000 else "{x:,.0f}")
    axes.yaxis.set_minor_locator(NullLocator())


def _cell(value):
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else value


def _notes(runs):
    """What keeps the perplexities of the runs from being compared."""
    parts = {
        "tokenizers": {run.tokenizer for run in runs},
        "evaluation protocols": {run.protocol for run in runs},
        "evaluation texts": {tuple(run.arguments.get(name) for name in TEXT_ARGUMENTS) for run in runs},
        "block lengths": {run.arguments.get("length") for run in runs},
    }
    different = [name for name, values in parts.items() if len(values) > 1]
    if "tokenizers" in different:
        yield (
            "The runs have different tokenizers: a perplexity per token says nothing across them. Compare perplexities "
            "per word or bits per byte instead, as `evaluate` prints them."
        )
    others = [name for name in different if name != "tokenizers"]
    if others:
        yield f"The runs have different {' and '.join(others)}: their perplexities are not comparable."


def _tokenizer_hash(path):
    if not path.is_file():
        return None
    try:
        return tokenizer_hash(path.read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
