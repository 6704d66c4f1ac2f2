"""Attention with a backward pass of plain products, beside PyTorch's own in float64."""

import pytest
import torch
from models import close, pytorch_model, random_batch, random_weights, tiny_config
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import profile

from algpt2_pt import cpu_attention
from algpt2_pt.cpu_attention import NAME, attention_forward, use_plain_backward
from algpt2_pt.cpu_kernels import is_bfloat16_fast

SHAPE = (2, 3, 40, 16)
PYTORCHS = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"


def gradients(attention, states, upstream):
    """The output, the gradients of the states, and the names of PyTorch's operations."""
    states = [state.clone().requires_grad_() for state in states]
    with profile() as profiler:
        output = attention(*states)
        output.backward(upstream.to(output.dtype))
    return [output, *(state.grad for state in states)], {event.key for event in profiler.key_averages()}


def causal(query, key, value):
    return scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3)


def plain(query, key, value, mask=None, dropout=0.0):
    module = torch.nn.Module()
    module.is_causal = True
    return attention_forward(module, query, key, value, mask, scaling=0.3, dropout=dropout)[0].transpose(1, 2)


@pytest.fixture
def states():
    torch.manual_seed(0)
    return [torch.randn(SHAPE, dtype=torch.bfloat16) for _ in range(3)]


@pytest.mark.parametrize("size", [1, 8])
def test_it_is_as_exact_as_pytorchs(size, states):
    # The larger, the larger are scores, whose errors the softmax takes as they are.
    states = [size * states[0], *states[1:]]
    upstream = torch.randn(SHAPE, dtype=torch.bfloat16)
    expected, _ = gradients(causal, [state.double() for state in states], upstream)
    theirs, _ = gradients(causal, states, upstream)
    found, used = gradients(plain, states, upstream)
    assert PYTORCHS not in used
    for value, other, reference in zip(found, theirs, expected, strict=True):
        error, allowed = ((tensor.double() - reference).norm() for tensor in (value, other))
        assert error <= 2 * allowed and error < 0.02 * reference.norm()


@pytest.mark.parametrize("change", ["float32", "long", "mask", "dropout", "cache"])
def test_all_else_is_pytorchs(change, states, monkeypatch):
    upstream, options = torch.randn(SHAPE), {}
    if change == "float32":
        states = [state.float() for state in states]
    if change == "long":
        monkeypatch.setattr(cpu_attention, "LONGEST", 39)
    if change == "mask":
        options = {"mask": torch.zeros(1, 1, 40, 40, dtype=torch.bfloat16)}
    if change == "cache":
        states = [states[0][:, :, :7], *states[1:]]
        upstream = upstream[:, :, :7]
    if change == "dropout":
        options = {"dropout": 0.1}
    _, used = gradients(lambda *states: plain(*states, **options), states, upstream)
    assert "_CausalAttention" not in used
    if change in ("float32", "long"):
        assert PYTORCHS in used


@pytest.mark.skipif(not is_bfloat16_fast(), reason="PyTorch's attention stays where the CPU has no bfloat16")
def test_a_model_learns_the_same_with_it():
    config = tiny_config()
    model = pytorch_model(config, random_weights(config, "float32"))
    ids = torch.tensor(random_batch(config)[0])

    def trained(model):
        model.zero_grad()
        with profile() as profiler, torch.autocast("cpu", torch.bfloat16):
            loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()], {e.key for e in profiler.key_averages()}

    expected, used = trained(model)
    assert "_CausalAttention" not in used
    found, used = trained(use_plain_backward(model))
    assert "_CausalAttention" in used and model.config._attn_implementation == NAME
    assert all(close(value, reference, tolerance=0.05) for value, reference in zip(found, expected, strict=True))
