"""The same flags mean the same mathematics: every optimizer and schedule takes both frameworks to the same weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from models import both_models, random_config, random_weights, relative_difference, tiny_config
from transformers import Trainer, TrainingArguments

from algpt2.training.optimization import OPTIMIZERS, SCHEDULES
from algpt2_pt import ALGPT2LMHeadModel
from algpt2_pt.optimization import create_optimizer as create_torch_optimizer
from algpt2_pt.optimization import create_scheduler
from algpt2_tf.optimization import WarmupSchedule, create_optimizer
from algpt2_tf.weights import assign_weights, canonical_weights

pytestmark = pytest.mark.slow

STEPS, WARMUP_STEPS, DECAY_STEPS, WEIGHT_DECAY, MAX_GRAD_NORM = 20, 4, 6, 0.1, 1.0
LEARNING_RATES = {"adamw": 1e-2, "adafactor": 1e-1, "sgd": 1e-2, "lamb": 1e-2}
# Adafactor's bias of the keys is rounding error; through the norm of its tensor it reaches the other weights.
TOLERANCES = {"adamw": 1e-8, "adafactor": 1e-4, "sgd": 1e-12, "lamb": 1e-9}


@pytest.fixture(scope="module")
def training():
    """A function from an optimizer and a schedule to the start and the weights of both frameworks, in float64."""
    keras.config.set_floatx("float64")
    config = tiny_config(layer_schedule=[0, 0])
    start = random_weights(config)
    tensorflow, pytorch = both_models(config)
    batches = np.random.default_rng(0).integers(config.vocab_size, size=(STEPS, 4, 12)).astype("int32")

    @tf.function
    def gradients(ids):
        with tf.GradientTape() as tape:
            logits = tensorflow({"token_ids": ids, "padding_mask": tf.ones_like(ids)})
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(ids[:, 1:], logits[:, :-1])
            loss = tf.reduce_mean(losses)
        return tape.gradient(loss, tensorflow.trainable_variables)

    def train_in_pytorch(name, schedule, learning_rate):
        pytorch.load_state_dict({key: torch.tensor(array) for key, array in start.items()}, strict=False)
        optimizer = create_torch_optimizer(pytorch, name, learning_rate, WEIGHT_DECAY)
        scheduler = create_scheduler(optimizer, schedule, WARMUP_STEPS, STEPS, DECAY_STEPS)
        clipped = 0
        for ids in torch.tensor(batches).long():
            # transformers' own loss rounds the logits to float32.
            logits = pytorch(ids).logits[:, :-1]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
            clipped += torch.nn.utils.clip_grad_norm_(pytorch.parameters(), MAX_GRAD_NORM) > MAX_GRAD_NORM
            optimizer.step()
            scheduler.step()
        assert clipped
        return {key: tensor.numpy().copy() for key, tensor in pytorch.state_dict().items()}

    def train_in_tensorflow(name, schedule, learning_rate):
        assign_weights(tensorflow, start)
        rate = WarmupSchedule(schedule, learning_rate, WARMUP_STEPS, STEPS, DECAY_STEPS)
        optimizer = create_optimizer(name, rate, WEIGHT_DECAY, MAX_GRAD_NORM)
        for ids in batches:
            optimizer.apply(gradients(tf.constant(ids)), tensorflow.trainable_variables)
        return canonical_weights(tensorflow)

    yield lambda *options: (start, train_in_pytorch(*options), train_in_tensorflow(*options))
    keras.config.set_floatx("float32")


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_twenty_steps_give_the_same_weights(name, schedule, training):
    start, expected, found = training(name, schedule, LEARNING_RATES[name])
    for key, array in found.items():
        reference = expected[key]
        assert relative_difference(start[key], array) > 1e-3, f"{key} did not move"
        if name == "adafactor" and key.endswith("c_attn.bias"):
            # The softmax ignores the bias of the keys.
            (queries, _, values), (array_queries, _, array_values) = np.split(reference, 3), np.split(array, 3)
            reference, array = np.concatenate([queries, values]), np.concatenate([array_queries, array_values])
        assert relative_difference(reference, array) < TOLERANCES[name], key


@pytest.mark.parametrize("seed", range(3))
def test_weight_decay_is_that_of_trainer(seed, tmp_path):
    model = ALGPT2LMHeadModel(random_config(seed))
    arguments = TrainingArguments(output_dir=tmp_path, weight_decay=0.3, use_cpu=True, report_to="none")
    expected = Trainer(model=model, args=arguments).create_optimizer()
    found = create_torch_optimizer(model, "adamw", arguments.learning_rate, 0.3)
    for name in ("betas", "eps", "lr", "amsgrad"):
        assert found.defaults[name] == expected.defaults[name]

    def decays(optimizer):
        groups = [{id(parameter) for parameter in group["params"]} for group in optimizer.param_groups]
        return [(group["weight_decay"], ids) for group, ids in zip(optimizer.param_groups, groups, strict=True)]

    assert decays(found) == decays(expected)
