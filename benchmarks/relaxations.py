"""What sharing costs, and what wins it back: many small models trained at once on one GPU.

    python benchmarks/relaxations.py sweep --data data/packed --output-dir DIR --seconds 240
    python benchmarks/relaxations.py table --rates-from DIR/sweep.jsonl --output-dir DIR --seconds 360
    python benchmarks/relaxations.py large --shape 12x768 --batch 64 --slots 1 --output-dir DIR --seconds 480
    python benchmarks/relaxations.py speed --batch 8 --tokens 0.04 --output-dir DIR

DATA is what benchmarks/two_texts.py makes. A plan is a table of rows (below), each a model with its settings. A step of
training (batch, forward, backward, clipping, AdamW, the next learning rate) is one CUDA graph, since launching kernels
would take longer than running them, and several runs go side by side in streams of one process: of several processes a
GPU would run only one at a time. Every finished row is appended to DIR/PLAN.jsonl, and its weights to
DIR/weights-N.tar; rows that are there already are left out, so that the same command goes on where it was stopped.

Without a GPU steps are launched one by one, in float32, which is enough for the speed of each on a CPU. `--smoke` tries
all of it on a CPU with tiny models and random tokens, and compares a run with a plain loop.
"""

import argparse
import itertools
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
# The sharing and the rank of what `convert compress` made of the teacher, with norms and biases of each depth.
STARTS = {
    "full16": ("full", 16),
    "full64": ("full", 64),
    "sandwich16": ("sandwich", 16),
    "middle16": ("middle_cycle:1,2,1", 16),
    "middle32": ("middle_cycle:1,2,1", 32),
}


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
    """The rows of the comparison, each family at its own best rate; those that carry a claim with three seeds."""
    width = sizes.n_embd
    free = {"depth_norms": True, "depth_biases": True}
    narrow = f"layers of {width - 32}"
    families = [
        Row("gpt2"),
        Row("shared", "full"),
        Row("shared, factorized", "full", {"embedding_size": width // 2}),
        Row("shared, norms and biases", "full", free),
        Row("shared, rank 8", "full", {"depth_lora_rank": 8}),
        Row("shared, relaxed", "full", sizes.relaxed),
        Row("shared, relaxed, rank 16", "full", {**free, "depth_lora_rank": 16}),
        Row("shared, multiplier", "full", sizes.multiplier),
        Row("shared, relaxed, multiplier", "full", {**sizes.relaxed, **sizes.multiplier}),
        # A sandwich is the middle cycle 1,1,1.
        Row("sandwich, relaxed", "sandwich", sizes.relaxed),
        Row("middle cycle 1,2,1", "middle_cycle:1,2,1"),
        Row("middle cycle 1,2,1, relaxed", "middle_cycle:1,2,1", sizes.relaxed),
        *(Row(f"dense, {n} layer{'s' * (n > 1)}", model={"n_layer": n}) for n in (1, 3, 4)),
        *(Row(f"dense, {n} {narrow}", model={"n_layer": n, "n_embd": width - 32}) for n in (3, 4)),
    ]
    # What takes a part of the relaxations is compared at one rate.
    parts = {"shared, factorized", "shared, norms and biases", "shared, rank 8", "shared, multiplier", "dense, 1 layer"}
    more = {"shared": (4e-3,), "shared, relaxed": (4e-3,), "gpt2": (4e-3, 3.2e-2), "dense, 4 layers": (3.2e-2,)}
    more[f"dense, 3 {narrow}"] = more["gpt2"]
    rows = [
        replace(row, name=f"{row.name} @ {rate:g}", rate=rate, save=rate in (8e-3, 1.6e-2))
        for row in families
        for rate in (8e-3, *(() if row.name in parts else (1.6e-2,)), *more.get(row.name, ()))
    ]
    claims = {"gpt2", "shared, relaxed, multiplier", "middle cycle 1,2,1", "dense, 4 layers", f"dense, 4 {narrow}"}
    claims = [replace(row, rate=row.name) for row in families if row.name in claims]
    rows += [replace(row, seed=seed) for seed in (1, 2) for row in claims]
    rows = [replace(row, tokens=40) for row in rows] + longer(claims) + ways(sizes) + compressions()
    return [replace(row, warmup=0.1, block_scale=4.0, embedding_std=0.1) for row in rows]


def longer(rows):
    """The same for twice the tokens, the rate low over the last of them."""
    return [
        replace(row, name=f"{row.name}, 80 million tokens", tokens=80, schedule="cosine", save=True)
        for row in rows
        if "layers of" not in row.name
    ]


def ways(sizes):
    """What else could win back the rest with as few parameters: a teacher, more depths, a wider block."""
    free = {"depth_norms": True, "depth_biases": True, **sizes.multiplier}
    row = Row("", "full", {**free, "depth_lora_rank": 8}, tokens=40, rate="shared, relaxed, multiplier")
    depths, width = 2 * sizes.n_layer, sizes.n_embd * 3 // 2
    deep = {**free, "depth_lora_rank": 4, "n_layer": depths, "residual_multiplier": 1 / depths}
    wide = {**free, "depth_lora_rank": 4, "n_embd": width, "embedding_size": sizes.n_embd // 2}
    return [
        replace(row, name="shared, relaxed, multiplier, distilled", distill_weight=0.5),
        replace(row, name=f"shared, relaxed, multiplier, {depths} depths, rank 4", model=deep),
        replace(row, name=f"shared, relaxed, multiplier, width {width}, rank 4", model=wide),
    ]


def compressions():
    """What `convert compress` made of the teacher, trained on with a part of its tokens."""
    rows = []
    for start in STARTS:
        name = f"{start}, 10%, distilled"
        row = Row(name, rate=name, tokens=4, start=start, distill_weight=0.5)
        rows += [replace(row, name=f"{name} @ {rate:g}", rate=rate, save=rate == 2e-3) for rate in (2e-3, 4e-3)]
        if start in ("middle16", "middle32"):
            rows.append(replace(row, name=f"{name} alone", distill_weight=1.0))
        if start in ("full16", "sandwich16", "middle16"):
            plain = replace(row, distill_weight=0.0)
            rows += [replace(plain, name=f"{start}, {share:.0%}", tokens=40 * share) for share in (0, 0.01, 0.05, 0.1)]
            rows += [replace(row, name=f"{start}, {share:.0%}, distilled", tokens=40 * share) for share in (0.01, 0.05)]
    return rows


def large(sizes):
    """GPT-2, ALGPT2 as published and relaxed at the defaults of `train`, then at other rates; for `--shape 12x768`."""
    width, half = sizes.n_embd, {"embedding_size": min(128, sizes.n_embd // 2)}
    relaxed = {**sizes.relaxed, "depth_lora_rank": 16, **sizes.multiplier}
    families = {
        "gpt2": Row("gpt2"),
        "relaxed": Row("relaxed", "full", relaxed),
        "algpt2-relaxed": Row("algpt2-relaxed", "full", {**half, **relaxed}),
        "algpt2": Row("algpt2", "full", half),
        "shared": Row("shared", "full"),
    }
    rate = min(8e-3, 1 / width)
    order = (("gpt2", 1), ("relaxed", 1), ("relaxed", 2), ("gpt2", 2), ("algpt2", 1), ("algpt2-relaxed", 1))
    order += (("gpt2", 0.5), ("shared", 1), ("relaxed", 4))
    start = {"embedding_std": width**-0.5, "block_scale": width**-0.5 / 0.02, "warmup": 0.1}
    rows = [replace(families[name], name=f"{name} @ {rate * k:.2g}", rate=rate * k) for name, k in order]
    return [replace(row, tokens=24, measured=(1.0,), **start) for row in rows]


def speed(sizes):
    """Every model of the table for a moment, one after the other: what a step takes alone."""
    rows = [row for row in table(sizes) if row.name.endswith(f" @ {8e-3:g}")]
    rows += ways(sizes)[1:]
    return [replace(row, name=row.family, tokens=0.6, rate=1e-3, save=False) for row in rows]


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
    parser.add_argument("--starts", type=Path, help="the checkpoints teacher, full16 and others of docs/results.md")
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
    graphs = torch.cuda.is_available()
    texts = Texts(arguments.data, "cuda" if graphs else "cpu")
    sizes = Sizes(n_layer, n_embd, texts.vocabulary, arguments.batch)
    if graphs:
        check_graph(sizes, texts)
    former = read_records(arguments.rates_from) if arguments.rates_from else []
    rows = chosen(PLANS[arguments.plan](sizes), arguments)
    plan = Plan(rows, sizes, texts, arguments.output_dir, arguments.plan, former, deadline, arguments.starts)
    plan.run(1 if arguments.plan == "speed" else arguments.slots, graphs=graphs)


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
    from convert.compress import compress

    sizes = Sizes(n_layer=6, n_embd=64, vocabulary=256, batch=2)
    texts = Texts.random(sizes.vocabulary, "cpu")
    tokens = 6 * sizes.batch * LENGTH / 1e6
    torch.set_num_threads(1)
    starts = arguments.output_dir / "starts"
    if not starts.is_dir():
        new_model(Row("teacher"), sizes).save_pretrained(starts / "teacher")
        for name, (sharing, rank) in STARTS.items():
            free = {"depth_lora_rank": rank, "depth_norms": True, "depth_biases": True}
            compress(starts / "teacher", starts / name, sharing, init="svd", **free)
    for name in ("sweep", "settings", "table", "large"):
        rows = [replace(row, tokens=tokens * min(1, row.tokens)) for row in PLANS[name](sizes) if row.seed < 2]
        former = read_records(arguments.output_dir / "sweep.jsonl")
        Plan(rows, sizes, texts, arguments.output_dir, name, former, starts=starts).run(arguments.slots, graphs=False)
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
