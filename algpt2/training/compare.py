"""The history of one or several runs as a figure, and several runs as a table."""

import csv
import statistics
from dataclasses import dataclass
from pathlib import Path

from algpt2.checkpoints import CONFIG_FILE
from algpt2.checkpoints.config_file import read_config
from algpt2.checkpoints.weights import parameter_count
from algpt2.data.encoding import TOKENIZER_FILE
from algpt2.data.tokenizer import tokenizer_hash
from algpt2.errors import InputError
from algpt2.files.atomic import files_replaced_in
from algpt2.files.names import labels
from algpt2.files.reading import TOKENIZER_BYTES, parse_json, read_bytes, read_json
from algpt2.tables import markdown_table
from algpt2.training.figure import draw_perplexity
from algpt2.training.history import read_history
from algpt2.training.run_directory import ARGUMENTS_FILE, HISTORY_FILE

# The arguments that decide which text a run is evaluated on.
OF_A_TEXT = ("dataset", "validation", "text_column", "detokenize", "control_code")
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
class RunSummary:
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
        return {
            "run": self.label,
            "framework": self.arguments.get("framework"),
            "parameters": self.parameters,
            "steps": max(record["step"] for record in self.records),
            "tokens": max(record["tokens"] for record in self.records),
            "tokens_per_second": statistics.median(speeds) if speeds else None,
            "protocol": self.protocol,
            "best_eval_perplexity": best.get("eval_perplexity"),
            "best_step": best.get("step"),
            "last_eval_perplexity": last.get("eval_perplexity"),
            "last_step": last.get("step"),
            "last_train_perplexity": training[-1]["train_perplexity"] if training else None,
        }


def read_runs(directories):
    """The runs of some run directories.

    Args:
        directories: list of path.

    Returns:
        list of `RunSummary`.

    Raises:
        InputError: if one is no run directory, is damaged or is given twice.
    """
    runs = []
    for directory, label in zip(map(Path, directories), labels(directories), strict=True):
        if not directory.is_dir():
            raise InputError(f"{directory}: no such directory")
        if not (directory / ARGUMENTS_FILE).is_file():
            raise InputError(f"{directory}: not a run directory, which holds {ARGUMENTS_FILE} and {HISTORY_FILE}")
        arguments = read_json(directory / ARGUMENTS_FILE)
        has_config = (directory / CONFIG_FILE).is_file()
        runs.append(
            RunSummary(
                label,
                arguments,
                read_history(directory / HISTORY_FILE),
                parameter_count(read_config(directory)) if has_config else None,
                _tokenizer_hash(directory / TOKENIZER_FILE),
            )
        )
    return runs


def compare(arguments):
    """Write a figure and a table of several runs, and print the table.

    Args:
        arguments: `argparse.Namespace` with the `runs` and the `output_dir` of `algpt2.run.add_arguments`.

    Raises:
        InputError: if a run cannot be read or the directory not be written.
    """
    runs = read_runs(arguments.runs)
    rows = [run.row() for run in runs]
    table = markdown_table([COLUMNS.values(), *([_cell(row[column]) for column in COLUMNS] for row in rows)]) + "\n"
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
        "evaluation texts": {tuple(run.arguments.get(name) for name in OF_A_TEXT) for run in runs},
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
    content = read_bytes(path, TOKENIZER_BYTES)
    parse_json(content, path)
    try:
        return tokenizer_hash(content)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: not readable as a tokenizer ({error})") from error
