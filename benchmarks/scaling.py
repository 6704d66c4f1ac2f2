"""What a training step costs against depth, length, batch and vocabulary: `python benchmarks/scaling.py`.

One of four numbers of a base shape is varied at a time. A step is forward, backward and AdamW in PyTorch, with dropout
of 0.1, for ALGPT2 with its shared block and for this project's code without sharing and factorization. The time to
compile is measured against the depth as well: for the shared block, which `torch.compile` compiles once, and for as
many blocks as depths.
"""

import argparse
import json
import statistics
import time

import torch
from side_by_side import add_rounds, json_file

from algpt2 import ALGPT2Config, layer_schedule
from algpt2.benchmark.timing import processor, time_in_turns
from algpt2.cli import HelpFormatter
from algpt2.tables import markdown_table
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_pt.cpu_kernels import use_fast_kernels
from algpt2_pt.optimization import create_optimizer

BASE = {"n_layer": 6, "length": 128, "batch": 4, "vocabulary": 16384}
VALUES = {
    "n_layer": (2, 4, 8, 16),
    "length": (64, 128, 256, 512),
    "batch": (1, 2, 4, 8),
    "vocabulary": (2048, 8192, 32768, 65536),
}
SCHEMES = {"algpt2": ("full", 128), "GPT-2's shape": ("none", None)}


def model(scheme, shape):
    """A model of 384 hidden units."""
    pattern, embedding_size = SCHEMES[scheme]
    config = ALGPT2Config(
        vocab_size=shape["vocabulary"],
        n_embd=384,
        n_head=6,
        layer_schedule=layer_schedule(pattern, shape["n_layer"]),
        embedding_size=embedding_size,
    )
    return use_fast_kernels(ALGPT2LMHeadModel(config)).train()


def stepper(scheme, shape):
    """A function that takes one step."""
    trained = model(scheme, shape)
    optimizer = create_optimizer(trained, "adamw", 1e-4, 0.01)
    ids = torch.randint(shape["vocabulary"], (shape["batch"], shape["length"]))

    def step():
        trained(ids, labels=ids, use_cache=False, skip_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compile_seconds(scheme, n_layer):
    """float: the time of the first step with compiled blocks, beyond that of the second."""
    torch.compiler.reset()
    # What an earlier compilation left on the disk would be found.
    torch.compiler.config.force_disable_caches = True
    shape = {**BASE, "n_layer": n_layer}
    trained = model(scheme, shape)
    for block in trained.transformer.h:
        block.compile()
    ids = torch.randint(shape["vocabulary"], (shape["batch"], shape["length"]))
    times = []
    for _ in range(2):
        start = time.perf_counter()
        trained(ids, labels=ids, use_cache=False, skip_logits=True).loss.backward()
        times.append(time.perf_counter() - start)
    return times[0] - times[1]


def draw(measured, compiled, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 3.2), layout="constrained")
    axes = figure.subplots(1, 5)
    for panel, (dimension, values) in zip(axes, VALUES.items(), strict=False):
        for scheme in SCHEMES:
            panel.plot(
                values, [1000 * measured[f"{dimension} {value}, {scheme}"] for value in values], "o-", label=scheme
            )
        panel.set(xlabel=dimension, ylabel="ms a step")
    for scheme, found in compiled.items():
        axes[-1].plot(list(found), list(found.values()), "o-", label=scheme)
    axes[-1].set(xlabel="n_layer", ylabel="s to compile")
    for panel in axes:
        panel.set_ylim(0, 1.05 * panel.get_ylim()[1])
    axes[0].legend()
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_rounds(parser)
    parser.add_argument("--output", type=json_file, default="scaling.json", help="the JSON file; the PNG is beside it")
    arguments = parser.parse_args()
    measured = {}
    for dimension, values in VALUES.items():
        variants = {
            f"{dimension} {value}, {scheme}": stepper(scheme, {**BASE, dimension: value})
            for value in values
            for scheme in SCHEMES
        }
        seconds, _ = time_in_turns(variants, arguments.rounds)
        measured |= {name: statistics.median(times) for name, times in seconds.items()}
    # The first compilation of a process loads the compiler.
    compile_seconds("algpt2", VALUES["n_layer"][0])
    compiled = {scheme: {n: compile_seconds(scheme, n) for n in VALUES["n_layer"]} for scheme in SCHEMES}
    rows = [["", *SCHEMES]]
    for dimension, values in VALUES.items():
        for value in values:
            cells = [f"{1000 * measured[f'{dimension} {value}, {scheme}']:,.0f} ms" for scheme in SCHEMES]
            rows.append([f"{dimension} {value}", *cells])
    rows += [[f"compile, n_layer {n}", *(f"{compiled[s][n]:.1f} s" for s in SCHEMES)] for n in VALUES["n_layer"]]
    print(f"A training step of {BASE} with one number varied, {processor()}\n\n{markdown_table(rows)}")
    arguments.output.write_text(json.dumps({"base": BASE, "step": measured, "compile": compiled}, indent=2) + "\n")
    draw(measured, compiled, arguments.output.with_suffix(".png"))
    print(f"\nwrote {arguments.output} and {arguments.output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
