"""Matrix products on a CPU by oneDNN."""

import contextlib
from contextvars import ContextVar
from types import MappingProxyType

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules import module as hooks

_PACKED = ContextVar("packed", default=MappingProxyType({}))


def linear(layer, inputs):
    """`layer(inputs)`, computed by oneDNN for float32 on a CPU.

    PyTorch itself gives these products to MKL, which does not use the AVX-512 of AMD's processors; oneDNN does.
    `torch.backends.mkldnn.flags(enabled=False)` leaves all to PyTorch.

    Args:
        layer: module of one tensor. Only `torch.nn.Linear` itself is computed in another way, and not while it is
            compiled, exported or hooked.
        inputs: float (..., inputs).

    Returns:
        float (..., outputs).

    Example:
        >>> linear(nn.Linear(2, 3), torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """
    if not torch.compiler.is_compiling() and _is_plain(layer):
        packed = None if torch.is_grad_enabled() else _PACKED.get().get(layer)
        if packed is not None and _is_for_onednn(inputs, layer.weight, torch.bfloat16):
            return _onednn_linear(inputs, packed, layer.bias)
        if _is_for_onednn(inputs, layer.weight):
            return _product(inputs, layer.weight, layer.bias)
    return layer(inputs)


@contextlib.contextmanager
def packed_weights(model):
    """In it, and without gradients, `linear` takes bfloat16 weights from copies in oneDNN's own layout.

    A product of one row by them takes half the time, and a copy of a shared block as long as one or two tokens. float32
    gains nothing. The weights must not change meanwhile.

    Args:
        model: module. Only its plain `torch.nn.Linear` on a CPU that computes in bfloat16 are copied.

    Example:
        >>> layer = nn.Linear(64, 64).bfloat16()
        >>> with torch.no_grad(), packed_weights(layer):
        ...     linear(layer, torch.zeros(1, 64, dtype=torch.bfloat16)).shape
        torch.Size([1, 64])
    """
    outer, packed = _PACKED.get(), {}
    if not torch.is_grad_enabled() and is_bfloat16_fast():
        for layer in model.modules():
            if layer in outer:
                packed[layer] = outer[layer]
            elif _is_plain(layer) and _is_for_onednn(layer.weight.data, layer.weight, torch.bfloat16):
                packed[layer] = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data, 1)
    token = _PACKED.set(packed)
    try:
        yield
    finally:
        _PACKED.reset(token)


def matmul_transposed(inputs, weight):
    """inputs weightᵀ, for float (..., inputs) and (outputs, inputs); by oneDNN as in `linear`."""
    if _is_for_onednn(inputs, weight):
        return _product(inputs, weight)
    return nn.functional.linear(inputs, weight)


def is_bfloat16_fast():
    """bool: whether oneDNN has products of bfloat16 for this CPU."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _product(inputs, weight, bias=None):
    return (_OneDNNLinear.apply if torch.is_grad_enabled() else _onednn_linear)(inputs, weight, bias)


def _onednn_linear(inputs, weight, bias):
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


class _OneDNNLinear(torch.autograd.Function):
    """The gradients of oneDNN's linear layer, which PyTorch has without them, for its compiler."""

    @staticmethod
    def forward(inputs, weight, bias):
        return _onednn_linear(inputs, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, upstream):
        inputs, weight = ctx.saved_tensors
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        rows = upstream.reshape(-1, upstream.shape[-1])
        return (
            matmul_transposed(upstream, weight.t()) if needs_inputs else None,
            matmul_transposed(rows.t(), inputs.reshape(-1, inputs.shape[-1]).t()) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def _is_plain(layer):
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and "forward" not in vars(layer)
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
        and not layer._backward_hooks
        and not layer._backward_pre_hooks
        and not hooks._has_any_global_hook()
    )


def _is_for_onednn(inputs, weight, dtype=torch.float32):
    return (
        not torch.compiler.is_compiling()
        and inputs.device.type == weight.device.type == "cpu"
        and type(inputs) is torch.Tensor
        and inputs.numel() > 0
        and inputs.dtype == weight.dtype == dtype
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
        # `torch.func` and forward-mode differentiation need rules of their own.
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )
