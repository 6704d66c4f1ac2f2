"""The loss in chunks, against PyTorch's own cross-entropy of whole logits in float64."""

import sys

import pytest
import torch
from models import tiny_config
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from algpt2_pt import ALGPT2LMHeadModel, cpu_kernels
from algpt2_pt.loss import linear_cross_entropy
from algpt2_pt.optimization import create_optimizer

V, E, TOKENS = 331, 16, 200


def reference(states, weight, labels):
    return torch.nn.functional.cross_entropy(states @ weight.T, labels, reduction="sum")


def loss_and_gradients(function, states, weight, labels):
    states, weight = states.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = function(states, weight, labels)
    (3.0 * loss).backward()
    return loss, states.grad, weight.grad


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    labels = torch.randint(V, (TOKENS,))
    labels[[0, 7, -1]] = -100
    # Large values, which a softmax without its maximum would overflow on.
    return torch.randn(TOKENS, E) * 8, torch.randn(V, E) * 4, labels


@pytest.mark.parametrize("model_class", [ALGPT2LMHeadModel, GPT2LMHeadModel])
def test_the_smoothed_labels_of_the_trainer_are_those_of_the_next_tokens(model_class, tmp_path):
    config = tiny_config() if model_class is ALGPT2LMHeadModel else GPT2Config(n_embd=16, n_head=2, n_layer=1)
    torch.manual_seed(0)
    model, ids = model_class(config).eval(), torch.arange(24).reshape(2, 12)
    options = TrainingArguments(tmp_path, label_smoothing_factor=0.1, report_to="none", use_cpu=True)
    found = Trainer(model, options).compute_loss(model, {"input_ids": ids, "labels": ids})
    losses = -model(ids).logits[:, :-1].log_softmax(-1)
    of_labels = losses.gather(-1, ids[:, 1:, None]).mean()
    torch.testing.assert_close(found, 0.9 * of_labels + 0.1 * losses.mean())


# Of half-precision states the products are rounded, but not the loss.
TOLERANCES = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-6, 1e-5), torch.bfloat16: (1e-3, 2e-2)}


@pytest.mark.parametrize("logits", [1, 70 * V, 1000 * V], ids=["smallest", "uneven", "one chunk"])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_loss_and_gradients_are_those_of_whole_logits(inputs, dtype, logits):
    states, weight, labels = inputs
    if dtype is torch.bfloat16:
        states, weight = states / 10, weight / 10
    states, weight = states.to(dtype), weight.to(dtype)
    expected = loss_and_gradients(reference, states.double(), weight.double(), labels)
    found = loss_and_gradients(lambda *args: linear_cross_entropy(*args, logits), states, weight, labels)
    assert found[0].dtype == torch.promote_types(dtype, torch.float32)
    tolerances = TOLERANCES[dtype]
    for value, target, tolerance in zip(found, expected, (tolerances[0], tolerances[1], tolerances[1]), strict=True):
        assert (value.double() - target).abs().max() <= tolerance * target.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_autocast(inputs, dtype):
    states, weight, labels = inputs
    states, weight = states / 10, weight / 10
    rounded = states.bfloat16().double(), weight.bfloat16().double()
    expected = loss_and_gradients(reference, *rounded, labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_and_gradients(linear_cross_entropy, states.to(dtype), weight, labels)
    assert [value.dtype for value in found] == [torch.float32, dtype, torch.float32]
    assert 0 < abs(found[0] - expected[0]) <= 1e-3 * expected[0]
    assert (found[2] - expected[2]).abs().max() <= 2e-2 * expected[2].abs().max()


def test_no_labels_no_loss(inputs):
    states, weight, labels = inputs
    loss, *gradients = loss_and_gradients(linear_cross_entropy, states, weight, torch.full_like(labels, -100))
    assert loss == 0 and all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("count", [None, 0, torch.tensor(0)])
def test_a_step_without_a_label_that_counts_changes_nothing(count):
    model = ALGPT2LMHeadModel(tiny_config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = create_optimizer(model, "adamw", 0.1, weight_decay=0.0)
    ids = torch.arange(6)[None]
    loss = model(ids, labels=torch.full_like(ids, -100), skip_logits=True, num_items_in_batch=count).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    assert loss == 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def products(profiler):
    by_either = ("mkldnn::_linear_pointwise", "aten::mm")
    return sum(event.count for event in profiler.key_averages() if event.key in by_either)


@pytest.mark.parametrize("onednn_rows", [0, sys.maxsize])
@pytest.mark.parametrize("asked", [(True, True), (True, False), (False, True), (False, False)])
def test_only_what_is_asked_for_is_computed(inputs, asked, onednn_rows, monkeypatch):
    monkeypatch.setattr(cpu_kernels, "onednn_rows", lambda: onednn_rows)
    monkeypatch.setattr(cpu_kernels, "SMALL_MATRIX", 0)
    states, weight, labels = inputs
    for tensor, is_asked in zip((states, weight), asked, strict=True):
        tensor.requires_grad_(is_asked)
    with torch.profiler.profile() as profiler:
        loss = linear_cross_entropy(states, weight, labels)
    assert products(profiler) == 1 + sum(asked)
    assert abs(loss - reference(states, weight, labels)) <= 1e-6 * loss
    with torch.no_grad(), torch.profiler.profile() as profiler:
        assert linear_cross_entropy(states, weight, labels) == loss
    assert products(profiler) == 1
    if any(asked):
        loss.backward()
        found = [tensor.grad for tensor in (states, weight)]
        states.grad = weight.grad = None
        reference(states, weight, labels).backward()
        for gradient, tensor, is_asked in zip(found, (states, weight), asked, strict=True):
            assert (gradient is None) != is_asked
            assert not is_asked or (gradient - tensor.grad).abs().max() <= 1e-5 * tensor.grad.abs().max()


def test_half_precision_does_not_scale_the_gradients(inputs):
    states, weight, labels = inputs
    states = (states / 10).bfloat16().requires_grad_()
    # 1 / 1021 has no close neighbour in bfloat16.
    (linear_cross_entropy(states, weight / 10, labels) / 1021).backward()
    precise = states.detach().double().requires_grad_()
    (reference(precise, (weight / 10).bfloat16().double(), labels) / 1021).backward()
    assert abs(states.grad.double().norm() / precise.grad.norm() - 1) < 1e-3


def test_second_derivatives_and_unknown_labels_are_refused(inputs):
    states, weight, labels = inputs
    states.requires_grad_()
    loss = linear_cross_entropy(states, weight, labels)
    (gradient,) = torch.autograd.grad(loss**2, states, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match="out of bounds"):
        linear_cross_entropy(states, weight, labels.where(labels != 5, -1).clamp(min=-1))
