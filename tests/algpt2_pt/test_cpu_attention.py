"""Attention for bfloat16 on a CPU, with and without instructions for it, beside PyTorch's own in float64."""

import pytest
import torch
from models import close, pytorch_model, random_batch, random_weights, tiny_config
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import profile

from algpt2_pt import cpu_attention
from algpt2_pt.cpu_attention import NAME, attention_forward, use_fast_attention

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


@pytest.fixture(autouse=True, params=[True, False], ids=["fast", "slow"])
def is_fast(request, monkeypatch):
    """Whether the CPU has instructions for bfloat16."""
    monkeypatch.setattr(cpu_attention, "is_bfloat16_fast", lambda: request.param)
    return request.param


@pytest.mark.parametrize("size", [1, 8])
def test_it_is_as_exact_as_pytorchs(size, states, is_fast):
    # The larger, the larger are scores, whose errors the softmax takes as they are.
    states = [size * states[0], *states[1:]]
    upstream = torch.randn(SHAPE, dtype=torch.bfloat16)
    expected, _ = gradients(causal, [state.double() for state in states], upstream)
    theirs, _ = gradients(causal, states, upstream)
    found, used = gradients(plain, states, upstream)
    assert (PYTORCHS in used) == (not is_fast) and ("_CausalAttention" in used) == is_fast
    assert {value.dtype for value in found} == {torch.bfloat16}
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


def test_a_mask_counts_in_float32(states):
    allowed = torch.ones(40, 40, dtype=torch.bool).tril() & (torch.arange(40) != 7)
    mask = torch.zeros(1, 1, 40, 40, dtype=torch.bfloat16).masked_fill(~allowed, -1e9)
    upstream = torch.randn(SHAPE, dtype=torch.bfloat16)

    def masked(query, key, value):
        return scaled_dot_product_attention(query, key, value, attn_mask=mask.double(), scale=0.3)

    expected, _ = gradients(masked, [state.double() for state in states], upstream)
    found, _ = gradients(lambda *states: plain(*states, mask=mask), states, upstream)
    assert all(close(value, reference, tolerance=0.02) for value, reference in zip(found, expected, strict=True))


def test_a_model_learns_the_same_with_it(is_fast):
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
    found, used = trained(use_fast_attention(model))
    assert ("_CausalAttention" in used) == is_fast and model.config._attn_implementation == NAME
    assert all(close(value, reference, tolerance=0.05) for value, reference in zip(found, expected, strict=True))
