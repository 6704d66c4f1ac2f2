"""Greedy decoding beside GPT-2's, in one framework: `python benchmarks/decoding.py --framework pytorch`.

Every variant continues the same random prompt by the same number of tokens through its library's own `generate`, in a
process of its own that waits for its turn: two runtimes with threads of their own slow each other down within one. In
PyTorch the peers are transformers' `GPT2LMHeadModel` and, where they are installed, CTranslate2 and llama.cpp, which
run a GPT-2 of 124 million parameters; in TensorFlow KerasHub's `GPT2CausalLM`, by its default, which is without XLA on
CPUs, and with `jit_compile=True`, which `algpt2` has by default. `onnx` is `algpt2` by ONNX Runtime, `bare products`
what the products of its tokens alone take there; `LiteRT` is `algpt2` by LiteRT, from its cache or without one. `int8`,
`bf16` and `q4` have their weights in these types; `GPT-2's shape` is this project's code without sharing and
factorization. `of the memory` is the rate at which the weights are used, beside the rate at which memory is read; a
block that stays in the cache has more than 100%. The first call, which compiles, is reported apart. With `--busy`
another process computes all the time.
"""

import multiprocessing
import statistics
from pathlib import Path

import numpy as np
import runtimes
from side_by_side import add_rounds, check_variants, compare, framework_parser, read_bandwidth, report
from tqdm.auto import tqdm
from workers import Work, Worker

from algpt2 import ALGPT2Config
from algpt2.benchmark.timing import processor, time_in_turns
from algpt2.cli import positive_int
from algpt2.training.flops import training_flops

PEERS = {
    "pytorch": ("transformers", *runtimes.PEERS),
    "tensorflow": ("KerasHub", "KerasHub, jit_compile"),
}
TYPES = ("", ", bf16", ", int8")
SHAPES = {
    **{f"algpt2{dtype}": "algpt2" for dtype in TYPES},
    **{f"relaxed{dtype}": "algpt2-relaxed" for dtype in TYPES},
    **{f"GPT-2's shape{dtype}": "gpt2" for dtype in TYPES},
}
OURS = {*SHAPES, *runtimes.ONNX, *runtimes.LITERT}
VARIANTS = {
    "pytorch": (*PEERS["pytorch"], *SHAPES, *runtimes.ONNX),
    "tensorflow": (*PEERS["tensorflow"], *SHAPES, *runtimes.LITERT),
}


def preset_of(name):
    """str: the preset with the shape of a variant."""
    if name in (*runtimes.ONNX, *runtimes.LITERT):
        return runtimes.preset_of(name)
    return SHAPES.get(name, "gpt2")


def weight_bytes(name):
    """float: the bytes of the weights that a token takes; those of a shared block count at every depth."""
    sizes = {"bf16": 2, "int8": 1, "q8_0": 1, "q4": 0.5, "q4_0": 0.5}
    size = next((sizes[part] for part in name.split(", ") if part in sizes), 4)
    # Training takes six operations for every weight, but for attention's products.
    return size * training_flops(ALGPT2Config.from_preset(preset_of(name)), 0) / 6


def pytorch_generator(name, prompt, count):
    """The `Work` of a variant."""
    if name in (*runtimes.PEERS, *runtimes.ONNX):
        return runtimes.generator(name, prompt, count)

    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from algpt2_pt import ALGPT2LMHeadModel
    from algpt2_pt.benchmark import weight_size
    from algpt2_pt.cpu_kernels import use_fast_kernels
    from algpt2_pt.quantization import quantize_int8

    ids = torch.from_numpy(prompt).long()
    options = {"max_new_tokens": count, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    if name == "transformers":
        model = GPT2LMHeadModel(GPT2Config()).eval()
    else:
        model = use_fast_kernels(ALGPT2LMHeadModel(ALGPT2Config.from_preset(SHAPES[name]))).eval()
    if name.endswith("int8"):
        quantize_int8(model)
    if name.endswith("bf16"):
        model.bfloat16()
    return Work(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options), weight_size(model))


def tensorflow_generator(name, prompt, count):
    """As `pytorch_generator`, in Keras."""
    if name in runtimes.LITERT:
        return runtimes.litert_generator(prompt, count, *runtimes.LITERT[name])

    import keras_hub

    from algpt2_tf import TFALGPT2Backbone, TFALGPT2LMHeadModel
    from algpt2_tf.benchmark import weight_size
    from algpt2_tf.quantization import quantize_int8

    batch, length = prompt.shape
    ids = np.pad(prompt, ((0, 0), (0, count)))
    inputs = {"token_ids": ids, "padding_mask": np.arange(length + count)[None].repeat(batch, 0) < length}
    options = {"jit_compile": True} if name.endswith("jit_compile") else {}
    if name in PEERS["tensorflow"]:
        backbone = keras_hub.models.GPT2Backbone(50257, 12, 12, 768, 3072, max_sequence_length=1024)
        model = keras_hub.models.GPT2CausalLM(backbone)
    else:
        dtype = "bfloat16" if name.endswith("bf16") else None
        model = TFALGPT2LMHeadModel(TFALGPT2Backbone(ALGPT2Config.from_preset(SHAPES[name]), dtype=dtype))
    if name.endswith("int8"):
        quantize_int8(model)
    model.compile(sampler="greedy", **options)
    return Work(lambda: model.generate(dict(inputs), stop_token_ids=None), weight_size(model))


def compute_for_ever():
    """Keep a core busy."""
    while True:
        pass


def _label(axes, sizes, speeds, names):
    """Write a name beside each point, below the names that already stand there."""
    axes.figure.draw_without_rendering()
    pixels = axes.transData.transform(np.column_stack([sizes, speeds]))
    width, height = 105, 13
    placed = []
    for index in np.argsort(-pixels[:, 1]):
        x, y = pixels[index]
        while any(abs(x - other) < width and abs(y - above) < height for other, above in placed):
            y -= 1
        placed.append((x, y))
        below = (y - pixels[index, 1]) * 72 / axes.figure.dpi
        place = (sizes[index], speeds[index])
        axes.annotate(names[index], place, (6, below - 3), textcoords="offset points", fontsize="small")


def main():
    parser = framework_parser(__doc__, "decoding-FRAMEWORK-BATCH.json")
    add_rounds(parser)
    parser.add_argument("--batch-size", type=positive_int, default=1)
    parser.add_argument("--prompt-length", type=positive_int, default=8)
    parser.add_argument("--new-tokens", type=positive_int, default=256)
    parser.add_argument("--busy", action="store_true", help="decode while another process keeps one core busy")
    arguments = parser.parse_args()
    check_variants(parser, arguments, VARIANTS[arguments.framework])
    shape = (arguments.batch_size, arguments.prompt_length)
    prompt = np.random.default_rng(0).integers(1, 50257, size=shape, dtype=np.int32)
    build = {"pytorch": pytorch_generator, "tensorflow": tensorflow_generator}[arguments.framework]
    names = arguments.variants or [name for name in VARIANTS[arguments.framework] if runtimes.is_installed(name)]
    names = tqdm(names, "building", leave=False)
    variants = {name: Worker(build, name, prompt, arguments.new_tokens) for name in names}
    bandwidth = read_bandwidth()
    if arguments.busy:
        multiprocessing.get_context("spawn").Process(target=compute_for_ever, daemon=True).start()
    seconds, first = time_in_turns({name: variant.run for name, variant in variants.items()}, arguments.rounds)
    extra = {}
    for name, values in seconds.items():
        rate = weight_bytes(name) * arguments.new_tokens / statistics.median(values)
        extra[name] = {"of the memory": f"{rate / bandwidth:.0%}", "first call, s": f"{first[name]:.1f}"}
        extra[name]["MB"] = f"{variants[name].size / 1e6:,.1f}"
    peers = [peer for peer in PEERS[arguments.framework] if peer in seconds]
    work = arguments.batch_size * arguments.new_tokens
    rows = compare(seconds, work, "tokens", OURS, peers, extra)
    title = (
        f"Decoding in {arguments.framework}, batch {arguments.batch_size}, {arguments.prompt_length} + "
        f"{arguments.new_tokens} tokens, {'one core busy, ' * arguments.busy}{processor()}; "
        f"memory {bandwidth / 1e9:.0f} GB/s"
    )
    output = arguments.output or Path(f"decoding-{arguments.framework}-{arguments.batch_size}.json")
    report(title, rows, {"seconds": seconds, "first": first, "memory_read": bandwidth}, output)
    draw_sizes(title, rows, output.with_name(f"{output.stem}-sizes.png"))


def draw_sizes(title, rows, path):
    """Draw the speed over the size of what has weights of its own."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    rows = [row for row in rows if row["variant"] not in runtimes.PRODUCTS]
    speeds, sizes = ([float(row[column].replace(",", "")) for row in rows] for column in ("tokens/s", "MB"))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(sizes, speeds, c=["tab:blue" if row["variant"] in OURS else "tab:gray" for row in rows])
    axes.set(xscale="log", yscale="log", xlabel="MB of weights", ylabel="tokens/s")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.margins(x=0.25, y=0.1)
    axes.set_title(title.replace("; ", "\n"), fontsize="medium")
    _label(axes, sizes, speeds, [row["variant"] for row in rows])
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
