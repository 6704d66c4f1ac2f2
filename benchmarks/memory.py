"""Peak memory of a training step beside GPT-2's: `python benchmarks/memory.py --framework pytorch`.

Every variant of `benchmarks/training.py` takes two steps in a process of its own; what is reported is the peak of the
process as Linux tells it, less what it has before; the import of TensorFlow counts, that of PyTorch does not.
"""

import argparse
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
from side_by_side import check_variants, framework_parser, memory_bytes, report
from training import PEERS, STEPS, VARIANTS, check_shape

from algpt2.benchmark.timing import processor
from algpt2.cli import positive_int


def measure(framework, name, shape):
    """int: the bytes that two steps of a variant take in this process."""
    ids = np.random.default_rng(0).integers(50257, size=shape, dtype=np.int32)
    before = memory_bytes("VmHWM")
    step = STEPS[framework](name, ids, "fp32", 0.0).run
    for _ in range(2):
        step()
    return memory_bytes("VmHWM") - before


def main():
    parser = framework_parser(__doc__, "memory-FRAMEWORK.json")
    parser.add_argument("--batch-size", type=positive_int, default=8)
    parser.add_argument("--length", type=positive_int, default=1024)
    parser.add_argument("--measure", metavar="NAME", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    check_variants(parser, arguments, VARIANTS[arguments.framework])
    check_shape(parser, arguments)
    shape = (arguments.batch_size, arguments.length)
    if arguments.measure:
        print(json.dumps(measure(arguments.framework, arguments.measure, shape)))
        return
    found = {}
    for name in arguments.variants or VARIANTS[arguments.framework]:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        command = [sys.executable, __file__, "--framework", arguments.framework, "--measure", name]
        command += ["--batch-size", str(arguments.batch_size), "--length", str(arguments.length)]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if process.returncode == -signal.SIGKILL:
            print(f"{name} was killed, as Linux does where memory runs out, and is left out", file=sys.stderr)
            continue
        process.check_returncode()
        found[name] = json.loads(process.stdout.splitlines()[-1])
    if not found:
        sys.exit("error: nothing was measured")
    peer = next((name for name in PEERS[arguments.framework] if name in found), None)
    rows = [{"variant": name, "GB": f"{size / 1e9:.2f}"} for name, size in found.items()]
    for row in rows if peer else ():
        row[f"of {peer}"] = f"{found[row['variant']] / found[peer]:.0%}"
    title = f"Peak memory of a training step in {arguments.framework}, {shape[0]} x {shape[1]} tokens, {processor()}"
    report(title, rows, {"bytes": found}, arguments.output or Path(f"memory-{arguments.framework}.json"))


if __name__ == "__main__":
    main()
