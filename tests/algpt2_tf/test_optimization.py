"""AdamW and the schedules against PyTorch and transformers."""

import keras
import numpy as np
import pytest
import torch
from transformers import get_scheduler

from algpt2.run import SCHEDULES
from algpt2_pt.train import SCHEDULER_TYPES
from algpt2_tf.optimization import AdamW, WarmupSchedule


@pytest.mark.parametrize("decay", SCHEDULES)
@pytest.mark.parametrize(("warmup_steps", "steps"), [(0, 10), (1, 10), (4, 10), (10, 10), (0, 1)])
def test_schedules_are_those_of_transformers(decay, warmup_steps, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    reference = get_scheduler(SCHEDULER_TYPES[decay], optimizer, warmup_steps, steps)
    schedule = WarmupSchedule(decay, 0.3, warmup_steps, steps)
    for step in range(steps):
        np.testing.assert_allclose(float(schedule(step)), optimizer.param_groups[0]["lr"], rtol=1e-5, atol=1e-8)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
@pytest.mark.parametrize("gradient_scale", [1.0, 1e-7])
def test_adamw_is_that_of_torch(max_grad_norm, gradient_scale):
    draw = np.random.default_rng(0)
    start = draw.normal(size=(5, 4))
    gradients = draw.normal(size=(20, 5, 4)) * gradient_scale
    parameter = torch.nn.Parameter(torch.tensor(start))
    expected = torch.optim.AdamW([parameter], lr=0.01, weight_decay=0.1)
    variable = keras.Variable(start, dtype="float64")
    found = AdamW(0.01, weight_decay=0.1, max_grad_norm=max_grad_norm)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_([parameter], max_grad_norm)
        expected.step()
        found.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    np.testing.assert_allclose(np.asarray(variable), parameter.detach().numpy(), rtol=1e-6)


def test_both_survive_serialization():
    optimizer = AdamW(WarmupSchedule("cosine", 0.1, 2, 10), weight_decay=0.1, max_grad_norm=0.5)
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert restored.max_grad_norm == 0.5
    assert restored.epsilon == 1e-8
    assert float(restored._learning_rate(6)) == float(optimizer._learning_rate(6))
