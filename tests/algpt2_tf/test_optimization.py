"""The optimizers on given gradients and the schedules, against PyTorch, transformers and the papers."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from transformers import get_scheduler

from algpt2.errors import InputError
from algpt2.training.optimization import OPTIMIZERS, SCHEDULES
from algpt2_pt.optimization import create_optimizer as create_torch_optimizer
from algpt2_tf.optimization import LossScaleOptimizer, WarmupSchedule, create_optimizer

SHAPES = {"kernel": (5, 4), "bias": (4,)}
STEPS, LEARNING_RATE, WEIGHT_DECAY = 20, 0.1, 0.1


@pytest.fixture
def float64():
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx("float32")


@pytest.fixture(scope="module")
def mirrored():
    reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=reduction)


def random_arrays(seed, dtype="float64", scale=1.0):
    draw = np.random.default_rng(seed)
    return [(draw.normal(size=shape) * scale).astype(dtype) for shape in SHAPES.values()]


def variables(dtype="float64"):
    start = random_arrays(0, dtype)
    return [keras.Variable(array, dtype=dtype, name=name) for name, array in zip(SHAPES, start, strict=True)]


def updated(optimizer, weights, first=1, last=STEPS, gradients=random_arrays, compiled=False):
    """The weights after the steps from `first` to `last`; their gradients are `gradients(step)`."""
    if not optimizer.built:
        optimizer.build(weights)
    apply = tf.function(optimizer.apply, jit_compile=True) if compiled else optimizer.apply
    for step in range(first, last + 1):
        apply([tf.constant(gradient) for gradient in gradients(step)])
    return [np.asarray(weight) for weight in weights]


def float32_gradients(step):
    return random_arrays(step, "float32")


@pytest.mark.parametrize("scale", [1.0, 1e-7])
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_those_of_torch(name, max_grad_norm, scale, float64):
    module = torch.nn.ParameterDict(zip(SHAPES, map(torch.tensor, random_arrays(0)), strict=True))
    expected = create_torch_optimizer(module, name, LEARNING_RATE, WEIGHT_DECAY)
    for step in range(1, STEPS + 1):
        for parameter, gradient in zip(module.values(), random_arrays(step, scale=scale), strict=True):
            parameter.grad = torch.tensor(gradient)
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_(module.parameters(), max_grad_norm)
        expected.step()
    optimizer = create_optimizer(name, LEARNING_RATE, WEIGHT_DECAY, max_grad_norm)
    found = updated(optimizer, variables(), gradients=lambda step: random_arrays(step, scale=scale))
    for array, parameter in zip(found, module.values(), strict=True):
        np.testing.assert_allclose(array, parameter.detach().numpy(), rtol=1e-12, atol=1e-13)


def test_lamb_is_that_of_albert(float64):
    # lamb_optimizer.py of https://github.com/google-research/albert
    kernel, bias = random_arrays(0)
    moments = {"kernel": [0.0, 0.0], "bias": [0.0, 0.0]}
    for step in range(1, STEPS + 1):
        updates = {}
        for name, gradient in zip(SHAPES, random_arrays(step), strict=True):
            first, second = moments[name]
            moments[name] = first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            updates[name] = first / (np.sqrt(second) + 1e-6)
        updates["kernel"] += WEIGHT_DECAY * kernel
        ratio = np.linalg.norm(kernel) / np.linalg.norm(updates["kernel"])
        kernel = kernel - LEARNING_RATE * ratio * updates["kernel"]
        bias = bias - LEARNING_RATE * updates["bias"]
    found = updated(create_optimizer("lamb", LEARNING_RATE, WEIGHT_DECAY), variables())
    np.testing.assert_allclose(found[0], kernel, rtol=1e-12)
    np.testing.assert_allclose(found[1], bias, rtol=1e-12)


def test_adafactor_is_that_of_its_paper(float64):
    # Algorithms 4 and 5 of https://arxiv.org/abs/1804.04235, the relative step size bounded by the learning rate.
    def rms(array):
        return np.sqrt(np.mean(array**2))

    kernel, rows, columns = random_arrays(0)[0], 0.0, 0.0
    for step in range(1, STEPS + 1):
        gradient, decay = random_arrays(step)[0], 1.0 - step**-0.8
        squares = gradient**2 + 1e-30
        rows = decay * rows + (1.0 - decay) * squares.sum(1, keepdims=True)
        columns = decay * columns + (1.0 - decay) * squares.sum(0, keepdims=True)
        update = gradient / np.sqrt(rows * columns / rows.sum())
        size = max(1e-3, rms(kernel)) * min(LEARNING_RATE, step**-0.5)
        kernel = kernel - size * update / max(1.0, rms(update))
    optimizer = create_optimizer("adafactor", LEARNING_RATE, 0.0)
    np.testing.assert_allclose(updated(optimizer, variables())[0], kernel, rtol=1e-10)
    # Rows and columns, a vector, the step and the learning rate: less than the weights themselves.
    assert sum(np.size(variable) for variable in optimizer.variables) == 5 + 4 + 4 + 2


def test_adafactor_takes_gradients_of_zero():
    found = updated(
        create_optimizer("adafactor", LEARNING_RATE, 0.0),
        variables("float32"),
        gradients=lambda step: [array * 0 for array in random_arrays(step, "float32")],
    )
    for array, start in zip(found, random_arrays(0, "float32"), strict=True):
        np.testing.assert_array_equal(array, start)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_compiled_is_as_eager(name):
    schedule = WarmupSchedule("wsd", LEARNING_RATE, 4, STEPS)
    expected, found = (
        updated(
            create_optimizer(name, schedule, WEIGHT_DECAY, 0.5),
            variables("float32"),
            gradients=float32_gradients,
            compiled=compiled,
        )
        for compiled in (False, True)
    )
    for array, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(array, reference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_replicas_are_as_one(name, scaled, mirrored, float64):
    expected = updated(create_optimizer(name, LEARNING_RATE, WEIGHT_DECAY, 0.5), variables())
    with mirrored.scope():
        weights = variables()
        optimizer = create_optimizer(name, LEARNING_RATE, WEIGHT_DECAY, 0.5)
        if scaled:
            optimizer = LossScaleOptimizer(optimizer, initial_scale=1024.0, dynamic_growth_steps=7)
        optimizer.build(weights)

    @tf.function
    def apply(gradients):
        # Each replica has its own gradients, whose sum is that of the single device.
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        share = tf.where(replica == 0, tf.cast(1.75, "float64"), tf.cast(-0.75, "float64"))
        optimizer.apply([optimizer.scale_loss(gradient * share) for gradient in gradients], weights)

    for step in range(1, STEPS + 1):
        mirrored.run(apply, args=([tf.constant(gradient) for gradient in random_arrays(step)],))
    for weight, reference in zip(weights, expected, strict=True):
        for copy in mirrored.experimental_local_results(weight.value):
            np.testing.assert_allclose(np.asarray(copy), reference, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loss_scaling_changes_nothing_but_leaves_out_steps_that_overflow(name):
    schedule = WarmupSchedule("linear", LEARNING_RATE, 4, STEPS)
    expected = updated(
        create_optimizer(name, schedule, WEIGHT_DECAY, 0.5), variables("float32"), gradients=float32_gradients
    )
    optimizer = LossScaleOptimizer(
        create_optimizer(name, schedule, WEIGHT_DECAY, 0.5), initial_scale=1024.0, dynamic_growth_steps=7
    )
    weights = variables("float32")
    optimizer.build(weights)
    for step in range(1, STEPS + 1):
        if step == 10:
            scale, before = float(optimizer.dynamic_scale), [np.asarray(weight) for weight in weights]
            updated(optimizer, weights, 1, 1, lambda _: [np.full(s, np.inf, "float32") for s in SHAPES.values()])
            assert float(optimizer.dynamic_scale) == scale / 2
            assert int(optimizer.iterations) == step - 1
            for weight, array in zip(weights, before, strict=True):
                np.testing.assert_array_equal(np.asarray(weight), array)
        scale = np.float32(optimizer.dynamic_scale)
        updated(optimizer, weights, step, step, lambda step, scale=scale: [g * scale for g in float32_gradients(step)])
    for weight, reference in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(weight), reference)


def test_no_replica_applies_what_overflows_on_another(mirrored):
    with mirrored.scope():
        weights = variables("float32")
        optimizer = LossScaleOptimizer(create_optimizer("adamw", LEARNING_RATE, WEIGHT_DECAY, 0.5))
        optimizer.build(weights)

    @tf.function
    def apply():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        optimizer.apply([tf.fill(shape, tf.where(replica == 1, np.inf, 1.0)) for shape in SHAPES.values()], weights)

    mirrored.run(apply)
    assert np.asarray(optimizer.iterations) == 0
    assert np.asarray(optimizer.dynamic_scale) == 2.0**14
    for weight, start in zip(weights, random_arrays(0, "float32"), strict=True):
        np.testing.assert_array_equal(np.asarray(weight), start)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_saved_and_restored_optimizers_continue_to_the_same_weights(name, scaled):
    optimizer = create_optimizer(name, WarmupSchedule("wsd", LEARNING_RATE, 4, STEPS), WEIGHT_DECAY, 0.5)
    if scaled:
        optimizer = LossScaleOptimizer(optimizer, dynamic_growth_steps=3)
    weights = variables("float32")
    updated(optimizer, weights, 1, 10, float32_gradients)
    config = keras.saving.serialize_keras_object(optimizer)
    store, resumed = {}, [keras.Variable(np.asarray(w), name=w.name) for w in weights]
    optimizer.save_own_variables(store)
    restored = keras.saving.deserialize_keras_object(config)
    restored.build(resumed)
    restored.load_own_variables(store)
    expected = updated(optimizer, weights, 11, STEPS, float32_gradients)
    for array, reference in zip(updated(restored, resumed, 11, STEPS, float32_gradients), expected, strict=True):
        np.testing.assert_array_equal(array, reference)


LENGTHS = [(0, 10, 2), (1, 10, 9), (4, 10, 3), (10, 10, 0), (0, 1, 1), (3, 40, None)]


@pytest.mark.parametrize("decay", SCHEDULES)
@pytest.mark.parametrize(("warmup_steps", "steps", "decay_steps"), LENGTHS)
def test_schedules_are_those_of_transformers(decay, warmup_steps, steps, decay_steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    kind = {"constant": "constant_with_warmup", "wsd": "warmup_stable_decay"}.get(decay, decay)
    options = {"num_decay_steps": steps // 10 if decay_steps is None else decay_steps} if decay == "wsd" else None
    reference = get_scheduler(kind, optimizer, warmup_steps, steps, options)
    schedule = WarmupSchedule(decay, 0.3, warmup_steps, steps, decay_steps)
    for step in range(steps):
        np.testing.assert_allclose(float(schedule(step)), optimizer.param_groups[0]["lr"], rtol=1e-5, atol=1e-8)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize(
    ("decay", "lengths", "message"), [("wsd", (8, 10, 3), "8 warm-up steps and 3 decay"), ("sqrt", (0, 10), "'sqrt'")]
)
def test_wrong_schedules_are_refused(decay, lengths, message):
    with pytest.raises(InputError, match=message):
        WarmupSchedule(decay, 0.3, *lengths)


def test_wrong_optimizers_are_refused():
    with pytest.raises(InputError, match="'adam'; choose one of adamw, adafactor, sgd, lamb"):
        create_optimizer("adam", 0.1, 0.0)
