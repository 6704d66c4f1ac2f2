"""What the benchmarks share: the ceilings of the machine, speeds compared, a table, JSON and a picture."""

import argparse
import json
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from algpt2.benchmark.timing import cores, time_in_turns
from algpt2.cli import HelpFormatter, positive_int
from algpt2.tables import markdown_table


def json_file(text):
    """The name of a JSON file from a command line; its directory is made, so that no measurement is lost."""
    path = Path(text)
    if path.suffix != ".json" or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: must be a file that ends in .json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error.strerror}") from error
    if not os.access(path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"{text}: the directory cannot be written to")
    return path


def memory_bytes(field):
    """int: the bytes that this process has by a field of /proc/self/status, such as `"VmHWM"`, the most so far."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


def framework_parser(description, output):
    """The options of all benchmarks of one framework.

    Args:
        description: str.
        output: str, the name of the JSON file by default, as shown.

    Returns:
        `argparse.ArgumentParser`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    parser.add_argument("--framework", choices=("pytorch", "tensorflow"), required=True)
    parser.add_argument("--variants", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--output", type=json_file, help=f"the JSON file (default: {output})")
    return parser


def add_rounds(parser):
    """Add the option of how often to measure."""
    parser.add_argument("--rounds", type=positive_int, default=5, help="after one that warms up and compiles")


def check_variants(parser, arguments, known):
    """Exit with a message for a variant that is not there."""
    unknown = set(arguments.variants or ()).difference(known)
    if unknown:
        found, expected = (", ".join(map(repr, names)) for names in (sorted(unknown), known))
        parser.error(f"--variants {found}: the variants of {arguments.framework} are {expected}")


def read_bandwidth(rounds=5):
    """float: bytes a second that all cores read when they sum an array much larger than the caches."""
    threads = cores()
    array = np.ones(1 << 27, "float32")
    with ThreadPoolExecutor(threads) as executor:
        parts = np.array_split(array, threads)
        seconds, _ = time_in_turns({"memory": lambda: list(executor.map(np.sum, parts))}, rounds)
    return array.nbytes / min(seconds["memory"])


def compare(seconds, work, unit, ours, peers, extra=None):
    """A row for each variant: its speed, its spread, and how many times as fast `ours` is.

    Args:
        seconds: dict of str to list of float, as `time_in_turns` returns it.
        work: float. What a call does, in `unit`.
        unit: str.
        ours: set of str. The variants that are compared with the others.
        peers: list of str. The variants that they are compared with.
        extra: dict of str to dict of str to str, more columns.

    Returns:
        list of dict of str to str.
    """
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = []
    for name, values in seconds.items():
        row = {"variant": name, f"{unit}/s": f"{work / medians[name]:,.1f}"}
        row["spread"] = f"{work / max(values):,.1f} to {work / min(values):,.1f}"
        for peer in peers:
            row[f"x {peer}"] = f"{medians[peer] / medians[name]:.2f}" if name in ours else ""
        rows.append({**row, **(extra or {}).get(name, {})})
    return rows


def report(title, rows, measured, output):
    """Print a table, and write it and all that was measured as JSON, and the speeds as a picture beside it.

    Args:
        title: str.
        rows: list of dict of str to str; the second column is drawn.
        measured: dict, as JSON takes it.
        output: `Path` of the JSON file.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    print(f"{title}\n\n{markdown_table([columns, *([row.get(column, '') for column in columns] for row in rows)])}")
    output.write_text(json.dumps({"title": title, "rows": rows, **measured}, indent=2) + "\n")
    draw(title, rows, output.with_suffix(".png"))
    print(f"\nwrote {output} and {output.with_suffix('.png')}")


def draw(title, rows, path):
    """Draw the second column of the rows as bars."""
    from matplotlib.figure import Figure

    speed = list(rows[0])[1]
    figure = Figure(figsize=(8, 0.45 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh([row["variant"] for row in rows], [float(row[speed].replace(",", "")) for row in rows])
    axes.bar_label(bars, [row[speed] for row in rows], padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel=speed)
    axes.set_title(title.replace("; ", "\n"), fontsize="medium")
    figure.savefig(path, dpi=120)
