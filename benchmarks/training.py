"""Training steps beside GPT-2's, in one framework: `python benchmarks/training.py --framework pytorch`.

Every variant takes whole steps in turn, in a process of its own: forward, backward, clipping and AdamW, on the same
random tokens. In PyTorch `algpt2` is the step of `algpt2_pt.train`, and the peer transformers' `GPT2LMHeadModel`; in
TensorFlow it is `fit` as `algpt2_tf.train` calls it, and the peer KerasHub's `GPT2CausalLM`, by its default and with
`jit_compile=True`.
`algpt2, GPT-2's shape` is this project's code without sharing and factorization, so that what the architecture gains is
told apart from what the code does. `logits whole` is `algpt2` without the loss in chunks; `gradient checkpointing`
computes the block again in the backward pass. `jit_compile` is by XLA, which Keras does by itself on GPUs only. `of
its products` is the time that the matrix products of a step take alone, at their own shapes, in its own time.
"""

import itertools
import statistics
from collections import Counter
from pathlib import Path

import numpy as np
from side_by_side import add_rounds, check_variants, compare, framework_parser, report
from tqdm.auto import tqdm
from workers import Work, Worker

from algpt2 import ALGPT2Config
from algpt2.benchmark.timing import processor, time_in_turns
from algpt2.cli import positive_int
from algpt2.configuration import DROPOUTS
from algpt2.training.flops import peak_flops, training_flops
from algpt2.training.loss import tokens_in_chunk

PEERS = {"pytorch": ("transformers",), "tensorflow": ("KerasHub", "KerasHub, jit_compile")}
WHOLE, COMPILED, CHECKPOINTING = "logits whole", "compiled blocks", "gradient checkpointing"
JIT = "algpt2, jit_compile"
CONFIGS = {
    "algpt2": "algpt2",
    WHOLE: "algpt2",
    COMPILED: "algpt2",
    JIT: "algpt2",
    CHECKPOINTING: "algpt2",
    "relaxed": "algpt2-relaxed",
    "algpt2, GPT-2's shape": "gpt2",
}
VARIANTS = {
    "pytorch": (
        "transformers",
        "algpt2",
        WHOLE,
        COMPILED,
        CHECKPOINTING,
        "relaxed",
        "algpt2, GPT-2's shape",
    ),
    "tensorflow": (
        "KerasHub",
        "KerasHub, jit_compile",
        "algpt2",
        JIT,
        CHECKPOINTING,
        "relaxed",
        "algpt2, GPT-2's shape",
    ),
}


def check_shape(parser, arguments):
    """Exit with a message for sequences that GPT-2 cannot learn from."""
    if not 2 <= arguments.length <= 1024:
        parser.error(f"--length {arguments.length}: GPT-2 takes 2 to 1024 tokens")


def configuration(name, dropout):
    """The `ALGPT2Config` of a variant."""
    return ALGPT2Config.from_preset(CONFIGS[name], **dict.fromkeys(DROPOUTS, dropout))


def products_of(config, tokens):
    """Counter of tuple of int, rows, inputs and outputs: the linear layers that so many tokens go through."""
    found = Counter()
    for (inputs, outputs), _ in itertools.product(config.products.values(), range(config.n_layer)):
        found[tokens, inputs, outputs] += 1
        if config.depth_lora_rank:
            found[tokens, inputs, config.depth_lora_rank] += 1
            found[tokens, config.depth_lora_rank, outputs] += 1
    if config.is_factorized:
        found[tokens, config.embedding_size, config.n_embd] += 1
        found[tokens, config.n_embd, config.embedding_size] += 1
    head = config.vocab_size, config.embedding_width
    rows = min(tokens, tokens_in_chunk(*head))
    found[rows, head[1], head[0]] += tokens / rows
    return found


def product_seconds(config, tokens, draw, multiply):
    """float: the seconds of all matrix products of a step, forward and backward, each measured alone."""
    total = 0
    for (rows, inputs, outputs), count in products_of(config, tokens).items():
        x, weight, upstream = draw(rows, inputs), draw(outputs, inputs), draw(rows, outputs)
        calls = {
            "forward": lambda x=x, weight=weight: multiply(x, weight, False, True),
            "inputs": lambda upstream=upstream, weight=weight: multiply(upstream, weight, False, False),
            "weights": lambda upstream=upstream, x=x: multiply(upstream, x, True, False),
        }
        total += count * sum(map(statistics.median, time_in_turns(calls, 5)[0].values()))
    return total


def pytorch_step(name, ids, precision, dropout):
    """The `Work` of a variant: one step."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from algpt2_pt import ALGPT2LMHeadModel
    from algpt2_pt.cpu_attention import use_fast_attention
    from algpt2_pt.cpu_kernels import use_fast_kernels
    from algpt2_pt.memory import keep_freed_memory
    from algpt2_pt.optimization import create_optimizer

    ids, options = torch.from_numpy(ids).long(), {}
    if name == "transformers":
        model = GPT2LMHeadModel(GPT2Config(**dict.fromkeys(DROPOUTS, dropout)))
    else:
        keep_freed_memory()
        model = use_fast_kernels(ALGPT2LMHeadModel(configuration(name, dropout)))
        if precision == "bf16":
            use_fast_attention(model)
        options = {} if name == WHOLE else {"skip_logits": True}
    if name == COMPILED:
        for block in model.transformer.h:
            block.compile()
    if name == CHECKPOINTING:
        model.gradient_checkpointing_enable()
    optimizer = create_optimizer(model.train(), "adamw", 1e-4, 0.01)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(ids, labels=ids, use_cache=False, **options).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return Work(step)


def pytorch_products(precision):
    """A function that draws a matrix, and one that multiplies two."""
    import torch

    from algpt2_pt.cpu_kernels import multiply_transposed

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32

    def multiply(first, second, transpose_first, transpose_second):
        first = first.t() if transpose_first else first
        return multiply_transposed(first, second if transpose_second else second.t())

    return lambda *shape: torch.randn(shape).to(dtype), multiply


def tensorflow_step(name, ids, precision, dropout):
    """As `pytorch_step`, through Keras's `fit`."""
    import keras
    import keras_hub
    import tensorflow as tf

    from algpt2_tf import TFALGPT2Backbone, TFALGPT2LMHeadModel
    from algpt2_tf.optimization import create_optimizer
    from algpt2_tf.training import TrainingModel

    policy = {"fp32": "float32", "bf16": "mixed_bfloat16"}[precision]
    if name in PEERS["tensorflow"]:
        backbone = keras_hub.models.GPT2Backbone(
            50257, 12, 12, 768, 3072, dropout, max_sequence_length=1024, dtype=policy
        )
        model = keras_hub.models.GPT2CausalLM(backbone)
        model.compile(
            optimizer=keras.optimizers.AdamW(1e-4, weight_decay=0.01, global_clipnorm=1.0),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            **({"jit_compile": True} if name.endswith("jit_compile") else {}),
        )
        inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
        data = tf.data.Dataset.from_tensors((inputs, np.roll(ids, -1, axis=1)))
    else:
        backbone = TFALGPT2Backbone(
            configuration(name, dropout), dtype=policy, gradient_checkpointing=name == CHECKPOINTING
        )
        language_model = TFALGPT2LMHeadModel(backbone)
        optimizer = create_optimizer("adamw", 1e-4, 0.01, max_grad_norm=1.0)
        optimizer.build(language_model.trainable_variables)
        model = TrainingModel(language_model)
        model.compile(optimizer=optimizer, jit_compile=True if name == JIT else "auto")
        data = tf.data.Dataset.from_tensors({"input_ids": ids, "labels": ids})
    # TensorFlow's thread that tunes the pipeline would round the time of `fit` up to the next of its naps.
    options = tf.data.Options()
    options.autotune.enabled = False
    data = data.with_options(options)
    return Work(lambda: model.fit(data, verbose=0))


def tensorflow_products(precision):
    """As `pytorch_products`."""
    import tensorflow as tf

    dtype = tf.bfloat16 if precision == "bf16" else tf.float32
    # TensorFlow returns before the product is there.
    return (
        lambda *shape: tf.cast(tf.random.normal(shape), dtype),
        lambda *factors: tf.matmul(*factors)[0, 0].numpy(),
    )


STEPS = {"pytorch": pytorch_step, "tensorflow": tensorflow_step}
PRODUCTS = {"pytorch": pytorch_products, "tensorflow": tensorflow_products}


def main():
    parser = framework_parser(__doc__, "training-FRAMEWORK-PRECISION.json")
    add_rounds(parser)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--batch-size", type=positive_int, default=4)
    parser.add_argument("--length", type=positive_int, default=256)
    parser.add_argument("--dropout", type=float, default=0.0, help="of every variant")
    arguments = parser.parse_args()
    check_variants(parser, arguments, VARIANTS[arguments.framework])
    check_shape(parser, arguments)
    if not 0 <= arguments.dropout < 1:
        parser.error(f"--dropout {arguments.dropout}: must be at least 0 and below 1")
    ids = np.random.default_rng(0).integers(50257, size=(arguments.batch_size, arguments.length), dtype=np.int32)
    names = arguments.variants or VARIANTS[arguments.framework]
    build, setting = STEPS[arguments.framework], (ids, arguments.precision, arguments.dropout)
    workers = {name: Worker(build, name, *setting) for name in tqdm(names, "building", leave=False)}
    steps = {name: worker.run for name, worker in workers.items()}
    draw, multiply = PRODUCTS[arguments.framework](arguments.precision)
    matrix = draw(2048, 2048)

    def square():
        return multiply(matrix, matrix, False, True)

    ceiling = peak_flops(square, 2048)
    seconds, first = time_in_turns(steps, arguments.rounds)
    ceiling = max(ceiling, peak_flops(square, 2048))
    extra, products = {}, {}
    for name, values in seconds.items():
        preset = CONFIGS.get(name, "gpt2")
        config = ALGPT2Config.from_preset(preset)
        if preset not in products:
            products[preset] = product_seconds(config, ids.size, draw, multiply)
        # Attention's products, which depend on the length, are left out.
        rate = training_flops(config, 0) * ids.size / statistics.median(values)
        extra[name] = {
            "of its products": f"{products[preset] / statistics.median(values):.0%}",
            "of the matrix product": f"{rate / ceiling:.0%}",
            "first step, s": f"{first[name]:.1f}",
        }
    peers = [peer for peer in PEERS[arguments.framework] if peer in steps]
    rows = compare(seconds, ids.size, "tokens", set(CONFIGS), peers, extra)
    title = (
        f"Training in {arguments.framework}, {arguments.batch_size} x {arguments.length} tokens, "
        f"{arguments.precision}, dropout {arguments.dropout}, {processor()}; "
        f"matrix product {ceiling / 1e9:,.0f} GFLOP/s"
    )
    output = arguments.output or Path(f"training-{arguments.framework}-{arguments.precision}.json")
    measured = {"seconds": seconds, "first": first, "products": products, "matrix_product": ceiling}
    report(title, rows, measured, output)


if __name__ == "__main__":
    main()
