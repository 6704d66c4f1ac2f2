"""What sharing costs, and what wins it back: many small models trained at once on one GPU.

    python benchmarks/relaxations.py sweep --data data/packed --output-dir DIR --seconds 240
    python benchmarks/relaxations.py table --rates-from DIR/sweep.jsonl --output-dir DIR --seconds 360
    python benchmarks/relaxations.py large --shape 12x768 --batch 64 --slots 1 --output-dir DIR --seconds 480

DATA is what benchmarks/two_texts.py makes. A plan is a table of rows (below), each a model with its settings. A step of
training (batch, forward, backward, clipping, AdamW, the next learning rate) is one CUDA graph, since launching kernels
would take longer than running them, and several runs go side by side in streams of one process: of several processes a
GPU would run only one at a time. Every finished row is appended to DIR/PLAN.jsonl, and its weights to
DIR/weights-N.tar; rows that are there already are left out, so that the same command goes on where it was stopped.

`--smoke` tries all of it on a CPU with tiny models and random tokens, and compares a run with a plain loop.
"""

import argparse
import itertools
import json
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from many_runs import LENGTH, Row, Sizes, Texts, Training, new_model, optimizer_of
from plans import Plan, Slot, read_records

from algpt2.data.packing import TrainingOrder
from algpt2_pt.optimization import create_scheduler

RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)


def sweep(sizes):
    """Each family at five rates; then the shared one, at its best, with other settings."""
    families = {
        "gpt2": Row("gpt2"),
        "shared": Row("shared", "full"),
        "factorized": Row("factorized", "full", {"embedding_size": sizes.n_embd // 2}),
        "dense": Row("dense", model={"n_layer": 1}),
        "dense narrow": Row("dense narrow", model={"n_layer": 3, "n_embd": sizes.n_embd - 32}),
        "multiplier": Row("multiplier", "full", sizes.multiplier),
        "relaxed": Row("relaxed", "full", sizes.relaxed),
    }
    rows = [replace(row, name=f"{name} @ {rate:g}", rate=rate) for name, row in families.items() for rate in RATES]
    others = {
        "warmup 0.01": {"warmup": 0.01},
        "warmup 0.1": {"warmup": 0.1},
        "beta2 0.99": {"beta2": 0.99},
        "beta2 0.999": {"beta2": 0.999},
        "clip 0.25": {"clip": 0.25},
        "no clip": {"clip": None},
        "cosine": {"schedule": "cosine"},
        "embeddings std 0.1": {"embedding_std": 0.1},
        "blocks x 0.5": {"block_scale": 0.5},
        "blocks x 2": {"block_scale": 2.0},
        "blocks x 4": {"block_scale": 4.0},
        "weight decay 0.01": {"weight_decay": 0.01},
    }
    shared = replace(families["shared"], rate="shared")
    rows += [replace(shared, name=f"shared, {name}", **settings) for name, settings in others.items()]
    for name in ("embeddings std 0.1", "beta2 0.99", "blocks x 2"):
        rows.append(replace(families["gpt2"], name=f"gpt2, {name}", rate="gpt2", **others[name]))
    rows.append(Row("gpt2, multiplier", model={"residual_multiplier": sizes.n_layer**-0.5}, rate="gpt2"))
    rows.append(replace(shared, name="shared, seed", seed=1))
    return rows


def settings(sizes):
    """What holds deep models up: warm-up and the size of the first weights, for four families at several rates."""
    families = {
        "gpt2": Row("gpt2"),
        "shared": Row("shared", "full"),
        "relaxed": Row("relaxed", "full", sizes.relaxed),
        "dense": Row("dense", model={"n_layer": 3, "n_embd": sizes.n_embd - 32}),
    }
    rows = []
    for name, family in families.items():
        for warmup, scale, std in itertools.product((0.02, 0.1), (1.0, 4.0), (None, 0.1)):
            row = replace(family, tokens=8, warmup=warmup, block_scale=scale, embedding_std=std)
            rates = (2e-3, 4e-3, 8e-3) if (warmup, scale, std) == (0.1, 4.0, 0.1) else (4e-3,)
            title = f"{name}, warmup {warmup}, blocks x {scale:g}, embeddings {std or 0.02}"
            rows += [replace(row, name=f"{title} @ {rate:g}", rate=rate) for rate in rates]
    best = replace(families["shared"], tokens=8, warmup=0.1, block_scale=4.0, embedding_std=0.1)
    others = {
        "beta2 0.99": {"beta2": 0.99},
        "no clip": {"clip": None},
        "weight decay 0.01": {"weight_decay": 0.01},
        "embeddings 0.3": {"embedding_std": 0.3},
        "multiplier": {"model": sizes.multiplier},
    }
    return rows + [replace(best, name=f"shared, {name}", **changes) for name, changes in others.items()]


def table(sizes):
    """The rows of the comparison; those that carry a claim with three seeds."""
    tokens, width = 40, sizes.n_embd
    half = {"embedding_size": width // 2}
    free = {"depth_norms": True, "depth_biases": True}
    rows = [
        Row("gpt2", rate="gpt2"),
        Row("shared", "full", rate="shared"),
        Row("shared, factorized", "full", half, rate="shared"),
        Row("shared, norms and biases", "full", free, rate="relaxed"),
        Row("shared, rank 8", "full", {"depth_lora_rank": 8}, rate="relaxed"),
        Row("shared, relaxed", "full", sizes.relaxed, rate="relaxed"),
        Row("shared, relaxed, rank 16", "full", {**free, "depth_lora_rank": 16}, rate="relaxed"),
        Row("shared, multiplier", "full", sizes.multiplier, rate="shared"),
        Row("shared, relaxed, multiplier", "full", {**sizes.relaxed, **sizes.multiplier}, rate="relaxed"),
        # A sandwich is the middle cycle 1,1,1.
        Row("sandwich, relaxed", "sandwich", sizes.relaxed, rate="relaxed"),
        Row("middle cycle 1,2,1", "middle_cycle:1,2,1", rate="shared"),
        Row("middle cycle 1,2,1, relaxed", "middle_cycle:1,2,1", sizes.relaxed, rate="relaxed"),
        Row("dense, 1 layer", model={"n_layer": 1}, rate="dense"),
        Row("dense, 3 layers", model={"n_layer": 3}, rate="dense"),
        *(
            Row(f"dense, {n} layers of {width - 32}", model={"n_layer": n, "n_embd": width - 32}, rate="dense")
            for n in (3, 4)
        ),
    ]
    # Each family at other rates as well, so that none is compared at another's best.
    tried = ("gpt2", "shared", "shared, relaxed", f"dense, 3 layers of {width - 32}")
    rows += [
        replace(row, name=f"{row.name} @ {rate:g}", rate=rate)
        for rate in (4e-3, 1.6e-2)
        for row in rows
        if row.name in tried
    ]
    rows = [replace(row, tokens=tokens, save=" @ " not in row.name) for row in rows]
    claims = {"gpt2", "shared", "shared, relaxed", "sandwich, relaxed", f"dense, 3 layers of {width - 32}"}
    rows += [replace(row, seed=seed, save=False) for seed in (1, 2) for row in rows if row.name in claims]
    start = Row("compressed", "full", sizes.relaxed, rate=2e-3, start="gpt2")
    rows.append(replace(start, name="compressed by the mean, 0%", tokens=0, init="average", calibration=0))
    rows.append(replace(start, name="compressed, 0%", tokens=0))
    for share in (0.01, 0.05, 0.1):
        row = replace(start, name=f"compressed, {share:.0%}", tokens=tokens * share)
        rows += [row, replace(row, name=f"{row.name}, distilled", teacher=True, save=share == 0.1)]
    # A sandwich keeps the first and the last block as they were.
    row = replace(rows[-1], name="compressed sandwich, 10%, distilled", sharing="sandwich")
    return [*rows, row, replace(row, name=f"{row.name}, rank 16", model={**free, "depth_lora_rank": 16})]


def large(sizes):
    """GPT-2, ALGPT2 as published and the preset `algpt2-relaxed`, at the defaults of `train`; for `--shape 12x768`."""
    width, half = sizes.n_embd, {"embedding_size": min(128, sizes.n_embd // 2)}
    relaxed = {**half, **sizes.relaxed, "depth_lora_rank": 16, **sizes.multiplier}
    rows = [Row("gpt2"), Row("algpt2", "full", half), Row("algpt2-relaxed", "full", relaxed)]
    start = {"embedding_std": width**-0.5, "block_scale": width**-0.5 / 0.02, "warmup": 0.1}
    return [replace(row, tokens=60, rate=min(8e-3, 1 / width), **start) for row in rows]


def speed(sizes):
    """Every model of the table for a moment, one after the other: what a step takes alone."""
    rows = [row for row in table(sizes) if row.seed == 0 and not row.start]
    return [replace(row, tokens=0.6, rate=1e-3, save=False) for row in rows]


PLANS = {"sweep": sweep, "settings": settings, "table": table, "large": large, "speed": speed}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", choices=PLANS)
    parser.add_argument("--data", type=Path, default=Path("data/packed"))
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop after these")
    parser.add_argument("--slots", type=int, default=6, help="runs side by side")
    parser.add_argument("--shape", default="8x128", help="depths x width of the unshared model")
    parser.add_argument("--batch", type=int, default=32, help="rows of 256 tokens in a step")
    parser.add_argument("--tokens", type=float, help="millions of tokens of a run, instead of those of the plan")
    parser.add_argument("--rates-from", type=Path, help="the .jsonl of a sweep")
    parser.add_argument("--rates", type=json.loads, default={}, help="JSON, the rate of each family instead")
    parser.add_argument("--settings", type=json.loads, default={}, help="JSON, fields of a row that all rows get")
    parser.add_argument("--only", nargs="+", help="rows whose name starts so")
    parser.add_argument("--smoke", action="store_true", help="tiny, on a CPU")
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    if arguments.smoke:
        smoke(arguments)
        return
    # Before CUDA starts: as many queues as streams, or one run would wait for another.
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
    deadline = time.monotonic() + arguments.seconds
    n_layer, n_embd = map(int, arguments.shape.split("x"))
    texts = Texts(arguments.data, "cuda")
    sizes = Sizes(n_layer, n_embd, texts.vocabulary, arguments.batch)
    check_graph(sizes, texts)
    former = read_records(arguments.rates_from) if arguments.rates_from else []
    rows = [replace(row, **arguments.settings) for row in chosen(PLANS[arguments.plan](sizes), arguments)]
    rows = [replace(row, rate=arguments.rates.get(row.rate, row.rate)) for row in rows]
    plan = Plan(rows, sizes, texts, arguments.output_dir, arguments.plan, former, deadline)
    plan.run(1 if arguments.plan == "speed" else arguments.slots, graphs=True)


def chosen(rows, arguments):
    """The rows of a plan that the command line asks for, with its number of tokens."""
    if arguments.only:
        rows = [row for row in rows if row.name.startswith(tuple(arguments.only))]
    if arguments.tokens:
        longest = max(row.tokens for row in rows)
        rows = [replace(row, tokens=row.tokens * arguments.tokens / longest) for row in rows]
    return rows


def check_graph(sizes, texts, steps=30):
    """Print how far the losses of replayed steps are from those of steps launched one by one."""
    row, losses = Row("check", "full", sizes.relaxed), []
    for graphs in (False, True):
        slot = Slot(Training(row, sizes, texts, steps, graphs=graphs, evaluates=False))
        while not slot.is_done():
            slot.advance()
        losses.append(slot.training.losses.cpu())
    difference = float((losses[1] - losses[0]).abs().max())
    print(
        f"graph and eager steps: losses {losses[1][0]:.4f} to {losses[1][-1]:.4f}, {difference:.1e} apart", flush=True
    )


def smoke(arguments):
    """Rows of every kind in tiny, and a run beside a plain loop."""
    sizes = Sizes(n_layer=3, n_embd=64, vocabulary=256, batch=2)
    texts = Texts.random(sizes.vocabulary, "cpu")
    tokens = 6 * sizes.batch * LENGTH / 1e6
    torch.set_num_threads(1)
    for name in ("sweep", "settings", "table", "large"):
        rows = [replace(row, tokens=tokens * min(1, row.tokens)) for row in PLANS[name](sizes) if row.seed < 2]
        former = read_records(arguments.output_dir / "sweep.jsonl")
        Plan(rows, sizes, texts, arguments.output_dir, name, former).run(arguments.slots, graphs=False)
    row = Row("plain", "full", sizes.relaxed)
    slot = Slot(Training(row, sizes, texts, 8, graphs=False))
    while not slot.is_done():
        slot.advance()
    expected = plain_losses(row, sizes, texts, 8)
    torch.testing.assert_close(slot.training.losses, torch.tensor(expected), rtol=1e-5, atol=0)
    print("the losses of a plain loop: the same")


def plain_losses(row, sizes, texts, steps):
    """The losses of a row by the plainest loop, in float32."""
    model = new_model(row, sizes)
    optimizer = optimizer_of(row, model)
    scheduler = create_scheduler(optimizer, row.schedule, math.ceil(row.warmup * steps), steps)
    order, losses = TrainingOrder(texts.blocks, steps * sizes.batch, row.seed), []
    for step in range(steps):
        blocks = order[np.arange(step * sizes.batch, (step + 1) * sizes.batch)]
        ids = texts.train[torch.from_numpy(blocks)].long()
        loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), row.clip)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    main()
