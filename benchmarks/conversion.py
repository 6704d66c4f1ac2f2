"""Conversion from file to file beside a plain copy of the file: time, and memory beside the largest tensor.

    python benchmarks/conversion.py --directory /tmp --rounds 5 --output conversion.json

The checkpoint has random weights, by default those of GPT-2 XL's size: 48 blocks of 1,600 that are not shared, 1.5
billion parameters in bfloat16. Each round copies the file, converts it to Keras's weights and these back to
safetensors, each in a process of its own and with what it wrote flushed to disk; in every other round the copy comes
last. Memory is the peak of the process less what it has after its imports, as Linux reports them. The disk needs room
for four times the file.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from side_by_side import json_file, memory_bytes

from algpt2 import ALGPT2Config, layer_schedule, parameter_count
from algpt2.checkpoints.checkpoint import write_checkpoint_weights
from algpt2.checkpoints.formats.lazy_tensor import DTYPES, LazyTensor
from algpt2.checkpoints.weights import weight_shapes
from algpt2.cli import HelpFormatter, natural_int, positive_int
from algpt2.tables import markdown_table

STEPS = ("copy", "to_tf", "to_pt")


def write_random_checkpoint(directory, config, dtype):
    """Write a checkpoint with random weights, one tensor at a time.

    Returns:
        int: the bytes of its largest tensor.
    """
    draw = np.random.default_rng(0)
    tensors = {
        name: LazyTensor(
            shape, DTYPES[dtype], lambda shape=shape: draw.standard_normal(shape, "float32").astype(DTYPES[dtype])
        )
        for name, shape in weight_shapes(config).items()
    }
    config.save_pretrained(directory)
    write_checkpoint_weights(directory, config, tensors, "pytorch", max_shard_size="1TB")
    return max(tensor.nbytes for tensor in tensors.values())


def measure(step, source, target):
    """One step, in this process: its seconds, and its peak of memory above that of the imports, in bytes."""
    from convert import conversion

    shutil.rmtree(target, ignore_errors=True)
    os.sync()
    # The imports had a peak of their own, which this sets back.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_bytes("VmRSS")
    start = time.perf_counter()
    if step == "copy":
        target.mkdir()
        shutil.copyfile(source / "model.safetensors", target / "model.safetensors")
    else:
        getattr(conversion, step)(source, target, max_shard_size="1TB")
    for path in target.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": memory_bytes("VmHWM") - before}


def run_rounds(directory, rounds):
    """The measurements of every step in every round."""
    places = {"copy": ("pt", "copy"), "to_tf": ("pt", "tf"), "to_pt": ("tf", "back")}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    results = []
    for number in range(rounds + 1):
        order = STEPS if number % 2 == 0 else ("to_tf", "to_pt", "copy")
        result = {}
        for step in order:
            paths = [str(directory / place) for place in places[step]]
            command = [sys.executable, __file__, "--step", step, *paths]
            process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            result[step] = json.loads(process.stdout.splitlines()[-1])
        shown = ", ".join(f"{step} {result[step]['seconds']:.2f} s" for step in STEPS)
        print(f"round {number}: {shown}" + ("  (warm-up)" if number == 0 else ""), file=sys.stderr, flush=True)
        if number:
            results.append(result)
        for place in ("copy", "back"):
            shutil.rmtree(directory / place)
    return results


def summary(results, largest):
    """For each step the median and the spread of its seconds, and both ratios."""
    rows = {}
    for step in STEPS:
        seconds = [result[step]["seconds"] for result in results]
        ratios = [result[step]["seconds"] / result["copy"]["seconds"] for result in results]
        memory = statistics.median(result[step]["bytes"] for result in results)
        rows[step] = {
            "seconds": statistics.median(seconds),
            "fastest": min(seconds),
            "slowest": max(seconds),
            "times_the_copy": statistics.median(ratios),
            "memory": memory,
            "times_the_largest_tensor": memory / largest,
        }
    return rows


def main():
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument("--directory", metavar="DIR", help="where the files are written (default: the system's)")
    parser.add_argument("--preset", default="algpt2-xl", help="the shape of the model")
    parser.add_argument("--sharing", default="none", help="the sharing pattern")
    parser.add_argument("--embedding-size", type=natural_int, default=128, help="0: the width of the model")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--rounds", type=positive_int, default=5)
    parser.add_argument("--output", type=json_file, metavar="FILE", help="write the figures there as JSON")
    parser.add_argument("--step", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        step, *paths = arguments.step
        print(json.dumps(measure(step, *map(Path, paths))))
        return

    config = ALGPT2Config.from_preset(arguments.preset)
    schedule = layer_schedule(arguments.sharing, config.n_layer)
    config = ALGPT2Config.from_dict(
        config.to_dict(), layer_schedule=schedule, embedding_size=arguments.embedding_size or None
    )
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        directory = Path(directory)
        (directory / "pt").mkdir()
        largest = write_random_checkpoint(directory / "pt", config, arguments.dtype)
        size = (directory / "pt" / "model.safetensors").stat().st_size
        print(
            f"{parameter_count(config):,} parameters, {arguments.dtype}: {size / 1e9:.2f} GB, "
            f"largest tensor {largest / 1e6:.1f} MB, {os.cpu_count()} cores",
            flush=True,
        )
        rows = summary(run_rounds(directory, arguments.rounds), largest)
    table = [("", "seconds", "fastest to slowest", "x the copy", "memory, MB", "x the largest tensor")]
    for step, row in rows.items():
        spread = f"{row['fastest']:.2f} to {row['slowest']:.2f}"
        ratios = f"{row['times_the_copy']:.2f}", f"{row['memory'] / 1e6:.1f}", f"{row['times_the_largest_tensor']:.2f}"
        table.append((step, f"{row['seconds']:.2f}", spread, *ratios))
    print(f"\nmedians of {arguments.rounds} rounds, ratios of each round\n\n{markdown_table(table)}")
    if arguments.output:
        record = {**vars(arguments), "bytes": size, "largest_tensor": largest, "steps": rows}
        arguments.output.write_text(json.dumps(record, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
