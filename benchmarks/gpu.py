"""What only a GPU can show, in one command of a few minutes: `python benchmarks/gpu.py --output-dir DIR`.

It needs one NVIDIA GPU, PyTorch 2.11 or newer and transformers 5.17 or newer; no network, no data. Every result is
written to DIR as soon as it is there (gpu.json, and gpu.md with the tables); what fails is written down, and the rest
goes on. `--smoke` runs all of it on a CPU with tiny shapes, to try the command before a GPU is at hand.

- Checks: logits and gradients on the GPU beside the CPU's, by every implementation of attention, compiled, with a
  static cache; and `algpt2_pt.train`, killed and resumed, `evaluate` and `generate` as commands.
- Loss: the loss in chunks of several sizes beside whole logits.
- Training: whole steps in bf16, of `algpt2`, of this project's code in GPT-2's shape and of transformers' GPT-2, eager
  and by `torch.compile`. MFU is the share of the rate of a bf16 matrix product that the products of the model reach.
- Decoding: greedy, in bf16, eager and with a static cache, which transformers compiles.
"""

import argparse
import functools
import gc
import importlib.metadata
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

from algpt2 import ALGPT2Config
from algpt2.cli import HelpFormatter, positive_float
from algpt2.configuration import NO_DROPOUT
from algpt2.tables import markdown_table
from algpt2.training.flops import peak_flops, training_flops
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_pt.cpu_kernels import use_fast_kernels
from algpt2_pt.loss import linear_cross_entropy
from algpt2_pt.optimization import create_optimizer

PARTS = ("checks", "loss", "training", "decoding")
ALGPT2, SHAPE, TRANSFORMERS = "algpt2", "algpt2, GPT-2's shape", "transformers' GPT-2"


@dataclass(frozen=True)
class Sizes:
    """The shapes that are measured.

    Args:
        shape: dict, fields of the configuration that all models share.
        length: int. The tokens of a row in training.
        batch: int. The rows of a step, halved where they do not fit into memory.
        steps: int. The steps that are timed.
        product: int. The rows of the matrix product that MFU is measured against.
        decoding: tuple of int, the batches.
        prompt, new_tokens: int. The tokens of decoding.
        compiler: str. The backend of `torch.compile`.
    """

    shape: dict
    length: int
    batch: int
    steps: int
    product: int
    decoding: tuple
    prompt: int
    new_tokens: int
    compiler: str


GPU = Sizes({}, 1024, 128, 10, 8192, (1, 64, 8), 128, 128, "inductor")
TINY = {"vocab_size": 512, "n_positions": 64, "n_embd": 32, "n_head": 4, "n_layer": 2}
SMOKE = Sizes(TINY, 32, 2, 2, 64, (1, 2), 8, 8, "aot_eager")


class Report:
    """Results as they come: tables by title, in gpu.json and gpu.md.

    Args:
        directory: `Path`.
        machine: dict of str to str.
        deadline: float. The moment, by `time.monotonic`, from which measurements are left out.
    """

    def __init__(self, directory, machine, deadline):
        self.directory, self.machine, self.deadline = directory, machine, deadline
        self.tables = {}

    def measure(self, title, name, function):
        """Add the row that a function gives, a dict of str to str; of a failure its message."""
        start = time.monotonic()
        if start > self.deadline:
            row = {"result": "left out: no time left"}
        else:
            try:
                row = function()
            except ImportError as error:
                row = {"result": f"left out: {' '.join(str(error).split())}"}
            except Exception as error:
                traceback.print_exc()
                row = {"result": f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        self.tables.setdefault(title, []).append({"": name, **row})
        print(f"[{time.monotonic() - start:5.1f} s] {title}: {name}: {row}", flush=True)
        self._write()
        gc.collect()
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _write(self):
        content = {"machine": self.machine, "tables": self.tables}
        (self.directory / "gpu.json").write_text(json.dumps(content, indent=2) + "\n")
        text = markdown_table([("machine", ""), *self.machine.items()]) + "\n"
        for title, rows in self.tables.items():
            columns = list(dict.fromkeys(column for row in rows for column in row))
            text += f"\n## {title}\n\n"
            text += markdown_table([columns, *([row.get(column, "") for column in columns] for row in rows)]) + "\n"
        (self.directory / "gpu.md").write_text(text)


def machine(device):
    """dict of str to str: what the figures are of."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers")}
    if device == "cpu":
        return {"device": "CPU (--smoke)", **versions}
    facts = torch.cuda.get_device_properties(0)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    ).stdout.strip()
    return {
        "device": f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, compute capability {facts.major}.{facts.minor}",
        "driver": f"{driver}, CUDA {torch.version.cuda}",
        **versions,
    }


def build(name, sizes, device, dtype=torch.float32):
    """A new model by its name, in evaluation mode.

    Args:
        name: str, one of `ALGPT2`, `SHAPE` and `TRANSFORMERS`.
        sizes: `Sizes`.
        device: str.
        dtype: `torch.dtype`.
    """
    torch.manual_seed(0)
    if name == TRANSFORMERS:
        model = GPT2LMHeadModel(GPT2Config(**{**NO_DROPOUT, **sizes.shape}))
    else:
        model = use_fast_kernels(ALGPT2LMHeadModel(configuration(name, sizes)))
    return model.to(device, dtype).eval()


def configuration(name, sizes):
    """The `ALGPT2Config` of a model, for transformers' GPT-2 that of the same shape."""
    config = ALGPT2Config.from_preset("algpt2", **{**NO_DROPOUT, **sizes.shape})
    if name == ALGPT2:
        return config
    return ALGPT2Config.from_dict(config.to_dict(), embedding_size=None, layer_schedule=list(range(config.n_layer)))


def random_ids(sizes, device, batch, length):
    """Random token ids, int64 (batch, length)."""
    vocabulary = configuration(ALGPT2, sizes).vocab_size
    generator = torch.Generator().manual_seed(1)
    return torch.randint(vocabulary, (batch, length), generator=generator).to(device)


def synchronize(device):
    """Wait for the GPU."""
    if device != "cpu":
        torch.cuda.synchronize()


def difference(found, expected):
    """float: the largest difference, relative to the largest value."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).abs().max() / expected.abs().max())


def check(found, allowed):
    """The row of a check: a difference and what is allowed."""
    return {"found": f"{found:.1e}", "allowed": f"{allowed:.0e}", "result": "ok" if found <= allowed else "FAILED"}


def run_checks(report, sizes, device):
    """Logits, gradients and generation on the device beside the CPU's, and the commands."""
    ids = random_ids(sizes, "cpu", 2, min(256, sizes.length))
    here = ids.to(device)
    sharper = functools.partial(_sharper, sizes=sizes)
    references = {}
    for name in (ALGPT2, SHAPE):
        with torch.no_grad():
            references[name] = sharper(name, "cpu")(ids).logits
            half = sharper(name, "cpu", torch.bfloat16)(ids).logits

        def logits(dtype, implementation="sdpa", backend=None, name=name, mask=None):
            model = sharper(name, device, dtype)
            model.set_attn_implementation(implementation)
            with torch.no_grad(), sdpa_kernel(backend or list(_BACKENDS.values())):
                return model(here, attention_mask=mask).logits

        def measure(title, function, report=report, name=name):
            report.measure("Checks", f"{name}: {title}", function)

        exact, rounded = references[name], difference(half, references[name])
        measure("logits in fp32, the CPU's", lambda exact=exact: check(difference(logits(torch.float32), exact), 1e-4))
        measure(
            "logits in bf16, the CPU's fp32 (allowed: twice what the CPU's bf16 has)",
            lambda exact=exact, rounded=rounded: check(difference(logits(torch.bfloat16), exact), 2 * rounded),
        )
        if name == SHAPE:
            continue
        for backend in _BACKENDS if device != "cpu" else ("flash", "math"):
            measure(
                f"sdpa by {backend} in bf16, the CPU's fp32",
                lambda b=backend, rounded=rounded: check(
                    difference(logits(torch.bfloat16, backend=_BACKENDS[b]), references[ALGPT2]), 2 * rounded
                ),
            )
        # Without a GPU flex attention takes half a minute to compile.
        for implementation in ("eager", "flash_attention_2", *(("flex_attention",) if device != "cpu" else ())):
            dtype, allowed = (torch.bfloat16, 2 * rounded) if "flash" in implementation else (torch.float32, 1e-4)
            measure(
                f"{implementation} in {str(dtype).removeprefix('torch.')}, the CPU's fp32",
                lambda i=implementation, d=dtype, a=allowed: check(difference(logits(d, i), references[ALGPT2]), a),
            )
    report.measure("Checks", f"{ALGPT2}: padding on the left", lambda: _check_padding(sharper(ALGPT2, device), here))
    report.measure(
        "Checks", f"{ALGPT2}: compiled, fullgraph", lambda: _check_compiled(sharper(ALGPT2, device), here, sizes)
    )
    report.measure("Checks", f"{ALGPT2}: gradient checkpointing", lambda: _check_gradients(sharper, device, here, True))
    report.measure("Checks", f"{ALGPT2}: loss in chunks", lambda: _check_gradients(sharper, device, here, False))
    report.measure(
        "Checks", f"{ALGPT2}: greedy, static cache", lambda: _check_static_cache(sharper(ALGPT2, device), here, sizes)
    )
    _check_commands(report, device)


_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}


def _sharper(name, device, dtype=torch.float32, *, sizes):
    # New models give nearly the same logits everywhere, which would hide what is wrong.
    model = build(name, sizes, "cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0 if parameter.ndim > 1 else 1.0)
    return model.to(device, dtype)


@torch.no_grad()
def _check_padding(model, ids):
    padded = torch.nn.functional.pad(ids, (5, 0))
    mask = torch.nn.functional.pad(torch.ones_like(ids), (5, 0))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = model(padded, attention_mask=mask, position_ids=positions).logits[:, 5:]
    return check(difference(found, model(ids).logits), 1e-4)


@torch.no_grad()
def _check_compiled(model, ids, sizes):
    expected = model(ids, use_cache=False).logits
    compiled = torch.compile(model, fullgraph=True, backend=sizes.compiler)
    return check(difference(compiled(ids, use_cache=False).logits, expected), 1e-4)


def _check_gradients(sharper, device, ids, checkpointing):
    gradients = []
    for changed in (False, True):
        model = sharper(ALGPT2, device).train()
        if changed and checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
        model(ids, labels=ids, use_cache=False, skip_logits=changed and not checkpointing).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    return check(max(difference(gradients[1][name], gradients[0][name]) for name in gradients[0]), 1e-3)


def _check_static_cache(model, ids, sizes):
    options = {"max_new_tokens": sizes.new_tokens // 2, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(ids[:, :8], attention_mask=torch.ones_like(ids[:, :8]), **options)
    found = model.generate(
        ids[:, :8], attention_mask=torch.ones_like(ids[:, :8]), cache_implementation="static", **options
    )
    same = (found == expected).float().mean().item()
    return {"found": f"{same:.0%} of the ids", "allowed": "100%", "result": "ok" if same == 1 else "FAILED"}


def _check_commands(report, device):
    """`train` in bf16 and fp16, killed and resumed, `evaluate` and `generate`."""
    with tempfile.TemporaryDirectory() as directory:
        runs = Path(directory)
        train = ["train", "--length", "128", "--batch-size", "16", "--warmup-steps", "5"]
        steps = ["--max-steps", "20", "--logging-steps", "5", "--save-steps", "10"]

        def whole(precision):
            _run(*train, *steps, "--precision", precision, "--output-dir", str(runs / precision))
            losses = [record["train_loss"] for record in _history(runs / precision) if "train_loss" in record]
            fell = losses[-1] < losses[0] - 0.3
            return {"found": f"loss {losses[0]:.2f} to {losses[-1]:.2f}", "result": "ok" if fell else "FAILED"}

        def resumed():
            _run(*train, *steps, "--precision", "bf16", "--output-dir", str(runs / "cut"), kill_at=10)
            _run("train", "--output-dir", str(runs / "cut"), "--resume")
            found, expected = (_history(runs / name)[-1]["eval_loss"] for name in ("cut", "bf16"))
            return check(abs(found / expected - 1), 1e-3)

        def evaluated():
            losses = []
            for visible in (None, ""):
                options = [str(runs / "bf16"), "--length", "128", "--json"]
                losses.append(json.loads(_run("evaluate", *options, visible=visible).splitlines()[-1])["loss"])
            return check(abs(losses[0] / losses[1] - 1), 1e-4)

        def generated():
            text = _run("generate", str(runs / "bf16"), "The value of", "--max-new-tokens", "16")
            return {"found": repr(text.strip()), "result": "ok" if text.startswith("The value of") else "FAILED"}

        report.measure("Checks", "train, 20 steps in bf16", lambda: whole("bf16"))
        if device == "cpu":
            report.measure("Checks", "train, 20 steps in fp16", lambda: {"result": "left out: needs a GPU"})
        else:
            report.measure("Checks", "train, 20 steps in fp16 with loss scaling", lambda: whole("fp16"))
        report.measure("Checks", "train, killed after step 10 and resumed: the loss of the run not killed", resumed)
        report.measure("Checks", "evaluate: the CPU's loss", evaluated)
        report.measure("Checks", "generate", generated)


def _run(command, *options, kill_at=None, visible=None):
    """The output of a command of `algpt2_pt`; with `kill_at` it is killed when that checkpoint is there."""
    environment = {**os.environ, **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})}
    line = [sys.executable, "-m", f"algpt2_pt.{command}", *options]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    if kill_at:
        checkpoint = Path(options[options.index("--output-dir") + 1]) / f"checkpoint-{kill_at}"
        while process.poll() is None and not checkpoint.exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    output, errors = process.communicate(timeout=120)
    if process.returncode and not kill_at:
        raise RuntimeError(f"{command} ended with {process.returncode}: {errors.strip().splitlines()[-1:]}")
    return output


def _history(directory):
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


def run_loss(report, sizes, device):
    """The loss of a step and its gradients, in chunks of several sizes and by whole logits."""
    config, tokens = configuration(ALGPT2, sizes), sizes.batch // 2 * sizes.length

    def measure(compute):
        generator = torch.Generator(device).manual_seed(0)
        options = {"generator": generator, "device": device, "dtype": torch.bfloat16, "requires_grad": True}
        states = torch.randn(tokens, config.embedding_width, **options)
        weight = torch.randn(config.vocab_size, config.embedding_width, **options)
        labels = torch.randint(config.vocab_size, (tokens,), generator=generator, device=device)

        def step():
            (compute(states, weight, labels) / tokens).backward()
            states.grad = weight.grad = None

        return timed(step, sizes.steps, device, lambda seconds: {"ms": f"{1000 * seconds:.1f}"})

    def whole(states, weight, labels):
        return torch.nn.functional.cross_entropy((states @ weight.t()).float(), labels, reduction="sum")

    title = f"Loss and its gradients, {tokens:,} tokens"
    for exponent in (23, 25, 27, 28, 29, 30):
        function = functools.partial(linear_cross_entropy, logits_in_chunk=1 << exponent)
        report.measure(title, f"chunks of 2^{exponent} logits", lambda f=function: measure(f))
    report.measure(title, "logits whole", lambda: measure(whole))
    compiled = torch.compile(whole, backend=sizes.compiler)
    report.measure(title, "logits whole, compiled", lambda: measure(compiled))


def timed(step, count, device, row):
    """The row of a function by its median time, with the seconds of the first call and the peak of the memory."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    synchronize(device)
    start = time.perf_counter()
    step()
    synchronize(device)
    first = time.perf_counter() - start
    for _ in range(2):
        step()
    seconds = []
    for _ in range(count):
        synchronize(device)
        start = time.perf_counter()
        step()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f}" if device != "cpu" else ""
    return {**row(statistics.median(seconds)), "first, s": f"{first:.1f}", "peak GB": memory}


def run_training(report, sizes, device):
    """Steps in bf16: forward, backward, clipping and AdamW."""
    dtype = torch.bfloat16
    matrix = torch.randn(sizes.product, sizes.product, device=device, dtype=dtype)

    def multiply():
        torch.matmul(matrix, matrix)
        synchronize(device)

    ceiling = peak_flops(multiply, sizes.product)
    report.machine["bf16 matrix product"] = f"{ceiling / 1e12:,.0f} TFLOP/s, {sizes.product} rows"
    rates = {}

    def measure(name, compiled, chunked):
        batch = sizes.batch
        while True:
            try:
                return steps(name, compiled, chunked, batch)
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
            batch //= 2
            gc.collect()
            torch.cuda.empty_cache()

    def steps(name, compiled, chunked, batch):
        model = build(name, sizes, device).train()
        optimizer = create_optimizer(model, "adamw", 1e-4, 0.01)
        ids = random_ids(sizes, device, batch, sizes.length)
        options = {"skip_logits": True} if chunked else {}
        if compiled:
            (model.transformer if chunked else model).compile(backend=sizes.compiler)

        def step():
            with torch.autocast(device, dtype):
                loss = model(ids, labels=ids, use_cache=False, **options).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

        def row(seconds):
            rate = ids.numel() / seconds
            rates[name, compiled] = max(rate, rates.get((name, compiled), 0.0))
            share = rate * training_flops(configuration(name, sizes), sizes.length) / ceiling
            peer = rates.get((TRANSFORMERS, compiled))
            return {
                "batch": f"{batch} x {sizes.length}",
                "tokens/s": f"{rate:,.0f}",
                "x transformers": f"{rate / peer:.2f}" if peer else "",
                "MFU": f"{share:.0%}",
            }

        return timed(step, sizes.steps, device, row)

    variants = [(TRANSFORMERS, False), (ALGPT2, True), (ALGPT2, False), (SHAPE, True)]
    for compiled in (False, True):
        for name, chunked in variants:
            how = ", compiled" if compiled else ""
            loss = ", loss in chunks" if chunked else ", logits whole" if name != TRANSFORMERS else ""
            report.measure(
                "Training in bf16", name + loss + how, lambda n=name, c=compiled, k=chunked: measure(n, c, k)
            )


def run_decoding(report, sizes, device):
    """Greedy decoding in bf16 by transformers' `generate`."""
    for batch in sizes.decoding:
        title = f"Decoding in bf16, batch {batch}, {sizes.prompt} + {sizes.new_tokens} tokens"
        rates = {}

        def measure(name, static, batch=batch, rates=rates):
            model = build(name, sizes, device, torch.bfloat16)
            ids = random_ids(sizes, device, batch, sizes.prompt)
            options = {"max_new_tokens": sizes.new_tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
            options |= {"cache_implementation": "static"} if static else {}

            def row(seconds):
                rates[name, static] = rate = batch * sizes.new_tokens / seconds
                peers = {"x transformers, eager": (TRANSFORMERS, False), "x the same": (TRANSFORMERS, static)}
                ratios = {column: f"{rate / rates[peer]:.2f}" for column, peer in peers.items() if peer in rates}
                return {"tokens/s": f"{rate:,.0f}", **ratios}

            return timed(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options), 3, device, row)

        for static in (False, True):
            for name in (TRANSFORMERS, ALGPT2, *((SHAPE,) if not static else ())):
                how = ", static cache, compiled" if static else ", eager"
                report.measure(title, name + how, lambda n=name, s=static, m=measure: m(n, s))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=HelpFormatter, prog="python benchmarks/gpu.py"
    )
    parser.add_argument("--output-dir", type=Path, required=True, help="where gpu.json and gpu.md go")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on the CPU")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="only these")
    parser.add_argument("--minutes", type=positive_float, default=8, metavar="X", help="start nothing more after that")
    arguments = parser.parse_args()
    if not arguments.smoke and not torch.cuda.is_available():
        parser.exit(2, "gpu.py: error: PyTorch finds no GPU; try the command with --smoke\n")
    try:
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.exit(2, f"gpu.py: error: {arguments.output_dir}: cannot be made ({error.strerror})\n")
    logging.set_verbosity_error()
    device, sizes = ("cpu", SMOKE) if arguments.smoke else ("cuda", GPU)
    report = Report(arguments.output_dir, machine(device), time.monotonic() + 60 * arguments.minutes)
    run = {"checks": run_checks, "loss": run_loss, "training": run_training, "decoding": run_decoding}
    for part in arguments.parts:
        run[part](report, sizes, device)
    print(f"wrote {arguments.output_dir / 'gpu.md'}")


if __name__ == "__main__":
    main()
