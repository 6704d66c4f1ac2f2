"""The loss in chunks, against PyTorch's own cross-entropy of whole logits in float64."""

import pytest
import torch

from algpt2_pt.loss import linear_cross_entropy

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


# Of half-precision states the products are rounded, but not the loss.
TOLERANCES = {torch.float64: (1e-12, 1e-12), torch.float32: (1e-6, 1e-5), torch.bfloat16: (1e-3, 2e-2)}


@pytest.mark.parametrize("logits", [1, 3 * V, 1000 * V], ids=["tokens alone", "uneven", "one chunk"])
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


def test_weights_of_float32_with_states_of_bfloat16_as_under_autocast(inputs):
    states, weight, labels = inputs
    states, weight = states / 10, weight / 10
    rounded = states.bfloat16().double(), weight.bfloat16().double()
    expected = loss_and_gradients(reference, *rounded, labels)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss_and_gradients(linear_cross_entropy, states.bfloat16(), weight, labels)
    assert [value.dtype for value in found] == [torch.float32, torch.bfloat16, torch.float32]
    assert abs(found[0] - expected[0]) <= 1e-3 * expected[0]
    assert (found[2] - expected[2]).abs().max() <= 2e-2 * expected[2].abs().max()


def test_no_labels_no_loss_and_no_gradient_that_is_not_asked_for(inputs):
    states, weight, labels = inputs
    loss, *gradients = loss_and_gradients(linear_cross_entropy, states, weight, torch.full_like(labels, -100))
    assert loss == 0 and all((gradient == 0).all() for gradient in gradients)
    expected = reference(states, weight, labels)
    with torch.no_grad():
        assert abs(linear_cross_entropy(states, weight, labels) - expected) <= 1e-6 * expected
    frozen = states.clone().requires_grad_()
    linear_cross_entropy(frozen, weight, labels).backward()
    reference(states.requires_grad_(), weight, labels).backward()
    assert (frozen.grad - states.grad).abs().max() <= 1e-5 * states.grad.abs().max()
