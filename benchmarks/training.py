"""Training steps beside GPT-2's, in one framework: `python benchmarks/training.py --framework pytorch`.

Every variant takes whole steps in turn: forward, backward, clipping and AdamW, on the same random tokens. In PyTorch
`algpt2` is the step of `algpt2_pt.train`, and the peer transformers' `GPT2LMHeadModel`; in TensorFlow it is
`fit` as `algpt2_tf.train` calls it, and the peer KerasHub's `GPT2CausalLM`, by its default and with `jit_compile=True`.
`algpt2, GPT-2's shape` is this project's code without sharing and factorization, so that what the architecture gains is
told apart from what the code does. `logits whole` is `algpt2` without the loss in chunks; `gradient checkpointing`
computes the block again in the backward pass. `jit_compile` is by XLA, which Keras does by itself on GPUs only.
"""

import statistics
from pathlib import Path

import numpy as np
from side_by_side import add_rounds, check_variants, compare, framework_parser, report

from algpt2 import ALGPT2Config
from algpt2.benchmark.timing import processor, time_in_turns
from algpt2.cli import positive_int
from algpt2.training.flops import peak_flops, training_flops

PEERS = {"pytorch": ("transformers",), "tensorflow": ("KerasHub", "KerasHub, jit_compile")}
CHECKPOINTING = "gradient checkpointing"
JIT = "algpt2, jit_compile"
CONFIGS = {
    "algpt2": "algpt2",
    "logits whole": "algpt2",
    "compiled blocks": "algpt2",
    JIT: "algpt2",
    CHECKPOINTING: "algpt2",
    "relaxed": "algpt2-relaxed",
    "algpt2, GPT-2's shape": "gpt2",
}
VARIANTS = {
    "pytorch": (
        "transformers",
        "algpt2",
        "logits whole",
        "compiled blocks",
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
DROPOUTS = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def check_shape(parser, arguments):
    """Exit with a message for sequences that GPT-2 cannot learn from."""
    if not 2 <= arguments.length <= 1024:
        parser.error(f"--length {arguments.length}: GPT-2 takes 2 to 1024 tokens")


def configuration(name, dropout):
    """The `ALGPT2Config` of a variant."""
    return ALGPT2Config.from_preset(CONFIGS[name], **dict.fromkeys(DROPOUTS, dropout))


def pytorch_steps(ids, precision, dropout, names):
    """A function for each of the variants that takes one step, and the matrix product that tells the ceiling."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from algpt2_pt import ALGPT2LMHeadModel
    from algpt2_pt.cpu_kernels import matmul_transposed, use_fast_kernels
    from algpt2_pt.optimization import create_optimizer

    ids = torch.from_numpy(ids).long()

    def step(model, optimizer, **options):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model(ids, labels=ids, use_cache=False, **options).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def stepper(model, **options):
        optimizer = create_optimizer(model.train(), "adamw", 1e-4, 0.01)
        return lambda: step(model, optimizer, **options)

    def ours(name):
        return use_fast_kernels(ALGPT2LMHeadModel(configuration(name, dropout)))

    def compiled():
        model = ours("compiled blocks")
        for block in model.transformer.h:
            block.compile()
        return model

    def checkpointing():
        model = ours(CHECKPOINTING)
        model.gradient_checkpointing_enable()
        return model

    variants = {
        "transformers": lambda: stepper(GPT2LMHeadModel(GPT2Config(**dict.fromkeys(DROPOUTS, dropout)))),
        "algpt2": lambda: stepper(ours("algpt2"), skip_logits=True),
        "logits whole": lambda: stepper(ours("logits whole")),
        "compiled blocks": lambda: stepper(compiled(), skip_logits=True),
        CHECKPOINTING: lambda: stepper(checkpointing(), skip_logits=True),
        "relaxed": lambda: stepper(ours("relaxed"), skip_logits=True),
        "algpt2, GPT-2's shape": lambda: stepper(ours("algpt2, GPT-2's shape"), skip_logits=True),
    }
    matrix = torch.ones(2048, 2048, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    steps = {name: build() for name, build in variants.items() if name in names}
    return steps, lambda: matmul_transposed(matrix, matrix)


def tensorflow_steps(ids, precision, dropout, names):
    """As `pytorch_steps`, through Keras's `fit`."""
    import keras
    import keras_hub
    import tensorflow as tf

    from algpt2_tf import TFALGPT2Backbone, TFALGPT2LMHeadModel
    from algpt2_tf.optimization import create_optimizer
    from algpt2_tf.training import TrainingModel

    policy = {"fp32": "float32", "bf16": "mixed_bfloat16"}[precision]
    # TensorFlow's thread that tunes the pipeline would round the time of `fit` up to the next of its naps.
    options = tf.data.Options()
    options.autotune.enabled = False

    def ours(name):
        backbone = TFALGPT2Backbone(
            configuration(name, dropout), dtype=policy, gradient_checkpointing=name == CHECKPOINTING
        )
        model = TFALGPT2LMHeadModel(backbone)
        optimizer = create_optimizer("adamw", 1e-4, 0.01, max_grad_norm=1.0)
        optimizer.build(model.trainable_variables)
        training_model = TrainingModel(model)
        training_model.compile(optimizer=optimizer, jit_compile=True if name == JIT else "auto")
        data = tf.data.Dataset.from_tensors({"input_ids": ids, "labels": ids}).with_options(options)
        return lambda: training_model.fit(data, verbose=0)

    def theirs(jit_compile):
        backbone = keras_hub.models.GPT2Backbone(
            50257, 12, 12, 768, 3072, dropout, max_sequence_length=1024, dtype=policy
        )
        model = keras_hub.models.GPT2CausalLM(backbone)
        model.compile(
            optimizer=keras.optimizers.AdamW(1e-4, weight_decay=0.01, global_clipnorm=1.0),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            **({"jit_compile": True} if jit_compile else {}),
        )
        inputs = {"token_ids": ids, "padding_mask": np.ones_like(ids)}
        data = tf.data.Dataset.from_tensors((inputs, np.roll(ids, -1, axis=1))).with_options(options)
        return lambda: model.fit(data, verbose=0)

    variants = {
        "KerasHub": lambda: theirs(False),
        "KerasHub, jit_compile": lambda: theirs(True),
        "algpt2": lambda: ours("algpt2"),
        JIT: lambda: ours(JIT),
        CHECKPOINTING: lambda: ours(CHECKPOINTING),
        "relaxed": lambda: ours("relaxed"),
        "algpt2, GPT-2's shape": lambda: ours("algpt2, GPT-2's shape"),
    }
    matrix = tf.ones((2048, 2048), tf.bfloat16 if precision == "bf16" else tf.float32)
    steps = {name: build() for name, build in variants.items() if name in names}
    return steps, lambda: float(tf.matmul(matrix, matrix)[0, 0])


STEPS = {"pytorch": pytorch_steps, "tensorflow": tensorflow_steps}


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
    steps, multiply = STEPS[arguments.framework](ids, arguments.precision, arguments.dropout, names)
    ceiling = peak_flops(multiply, 2048)
    seconds, first = time_in_turns(steps, arguments.rounds)
    ceiling = max(ceiling, peak_flops(multiply, 2048))
    extra = {}
    for name, values in seconds.items():
        # Attention's products, which depend on the length, are left out.
        flops = training_flops(ALGPT2Config.from_preset(CONFIGS.get(name, "gpt2")), 0)
        rate = flops * ids.size / statistics.median(values)
        extra[name] = {"of the matrix product": f"{rate / ceiling:.0%}", "first step, s": f"{first[name]:.1f}"}
    peers = [peer for peer in PEERS[arguments.framework] if peer in steps]
    rows = compare(seconds, ids.size, "tokens", set(CONFIGS), peers, extra)
    title = (
        f"Training in {arguments.framework}, {arguments.batch_size} x {arguments.length} tokens, "
        f"{arguments.precision}, dropout {arguments.dropout}, {processor()}; "
        f"matrix product {ceiling / 1e9:,.0f} GFLOP/s"
    )
    output = arguments.output or Path(f"training-{arguments.framework}-{arguments.precision}.json")
    report(title, rows, {"seconds": seconds, "first": first, "matrix_product": ceiling}, output)


if __name__ == "__main__":
    main()
