"""Training speed of the sharing schemes, side by side: `python benchmarks/sharing.py --config configs/sharing.json`."""

import argparse
import functools
import json
import statistics

import keras
import numpy as np
import tensorflow as tf
from side_by_side import add_rounds, json_file

from algpt2 import layer_schedule, parameter_count
from algpt2.benchmark.timing import time_in_turns
from algpt2.checkpoints.config_file import read_config
from algpt2.cli import HelpFormatter, positive_int
from algpt2.tables import markdown_table
from algpt2_tf import TFALGPT2Backbone, TFALGPT2LMHeadModel
from algpt2_tf.optimization import create_optimizer
from algpt2_tf.training import TrainingModel

SCHEMES = {
    "GPT-2": ("none", False),
    "factorized": ("none", True),
    "shared": ("full", False),
    "factorized + shared": ("full", True),
    "factorized, cycle:3": ("cycle:3", True),
    "factorized, sequence:3": ("sequence:3", True),
    "factorized, sandwich": ("sandwich", True),
}


def trainer(config):
    """A model that is ready for `fit`."""
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config))
    optimizer = create_optimizer("adamw", 1e-3, 0.01, max_grad_norm=1.0)
    optimizer.build(model.trainable_variables)
    training_model = TrainingModel(model)
    training_model.compile(optimizer=optimizer, jit_compile="auto")
    return training_model


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--config", required=True, help="a factorized configuration")
    parser.add_argument("--batch-size", type=positive_int, default=16, help="blocks of n_positions tokens")
    parser.add_argument("--steps", type=positive_int, default=5, help="of each scheme in a round")
    add_rounds(parser)
    parser.add_argument("--output", type=json_file, default="sharing.json", help="where the figures go")
    arguments = parser.parse_args()
    keras.utils.set_random_seed(0)
    base = read_config(arguments.config)
    configs = {}
    for name, (pattern, factorized) in SCHEMES.items():
        size = base.embedding_size if factorized else None
        schedule = layer_schedule(pattern, base.n_layer)
        configs[name] = type(base).from_dict(base.to_dict(), layer_schedule=schedule, embedding_size=size)
    trainers = {name: trainer(config) for name, config in configs.items()}
    shape = (arguments.batch_size, base.n_positions)
    ids = np.random.default_rng(0).integers(base.vocab_size, size=shape, dtype=np.int32)
    data = tf.data.Dataset.from_tensors({"input_ids": ids, "labels": ids}).repeat(arguments.steps)
    fits = {name: functools.partial(model.fit, data, verbose=0) for name, model in trainers.items()}
    seconds, _ = time_in_turns(fits, arguments.rounds)
    speeds = {name: [arguments.steps * ids.size / s for s in times] for name, times in seconds.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, speeds["GPT-2"], strict=True))
        for name, values in speeds.items()
    }
    rows = [("model", "parameters", "tokens/s", "spread", "ratio to GPT-2")]
    for name, values in speeds.items():
        spread = f"{min(values):,.0f} to {max(values):,.0f}"
        median = f"{statistics.median(values):,.0f}"
        rows.append((name, f"{parameter_count(configs[name]):,}", median, spread, f"{ratios[name]:.2f}"))
    print(markdown_table(rows))
    with open(arguments.output, "w") as file:
        json.dump({"speeds": speeds, "ratios": ratios}, file, indent=2)


if __name__ == "__main__":
    main()
