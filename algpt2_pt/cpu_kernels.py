"""What makes a PyTorch model faster, put on it from outside: products by oneDNN on a CPU, and GELU in one kernel."""

import contextlib
import functools
import platform
import sys
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn
from torch.autograd import forward_ad
from transformers.activations import NewGELUActivation

_PACKED = ContextVar("packed", default=MappingProxyType({}))


def use_fast_kernels(model):
    """Compute the linear layers of a model by oneDNN where that is faster, and GPT-2's GELU in one kernel.

    PyTorch gives products of float32 on a CPU to MKL. On AMD's processors some are faster by oneDNN, as `onednn_rows`
    says. That is a rule of the processor and not a measurement, so that a run that goes on in another process has the
    same numbers to the last bit.
    `gelu_new` is seven kernels in transformers, and one in PyTorch by another name. The numbers are the same but for
    rounding. `torch.backends.mkldnn.flags(enabled=False)` leaves products to PyTorch for a while.

    Args:
        model: `torch.nn.Module`; it is changed, its parameters are not.

    Returns:
        the model.

    Example:
        >>> layers = use_fast_kernels(nn.Sequential(nn.Linear(2, 3)))
        >>> layers(torch.zeros(5, 2)).shape
        torch.Size([5, 3])
    """
    return _swap(model, {nn.Linear: OneDNNLinear}, {NewGELUActivation: lambda: nn.GELU(approximate="tanh")})


def use_plain_kernels(model):
    """Undo `use_fast_kernels`; returns the model."""
    return _swap(model, {OneDNNLinear: nn.Linear}, {nn.GELU: NewGELUActivation})


def _swap(model, classes, activations):
    for module in list(model.modules()):
        # As layers keep their parameters and hooks, a class is all that changes.
        module.__class__ = classes.get(type(module), type(module))
        for name, child in module.named_children():
            if type(child) in activations:
                setattr(module, name, activations[type(child)]())
    return model


class OneDNNLinear(nn.Linear):
    """`torch.nn.Linear`, whose products are oneDNN's in float32 on a CPU that has them faster; else it is PyTorch's."""

    def forward(self, inputs):
        # The compiler does not know context variables.
        packed = None if torch.is_grad_enabled() or torch.compiler.is_compiling() else _PACKED.get().get(self)
        if packed is not None and _is_for_onednn(inputs, self.weight, torch.bfloat16):
            return _onednn_linear(inputs, packed, self.bias)
        if _is_for_onednn(inputs, self.weight):
            return _product(inputs, self.weight, self.bias)
        return super().forward(inputs)


@contextlib.contextmanager
def packed_weights(model):
    """A context in which a model without gradients reads its bfloat16 weights from copies in oneDNN's own layout.

    A product of one row with them takes half the time; making the copy of a shared block takes as long as one or two
    tokens. float32 gains nothing. The weights must not change meanwhile.

    Args:
        model: `torch.nn.Module` with `use_fast_kernels`. Only layers on a CPU that computes in bfloat16 are copied.

    Example:
        >>> layer = use_fast_kernels(nn.Linear(64, 64).bfloat16())
        >>> with torch.no_grad(), packed_weights(layer):
        ...     layer(torch.zeros(1, 64, dtype=torch.bfloat16)).shape
        torch.Size([1, 64])
    """
    outer, packed = _PACKED.get(), {}
    if not torch.is_grad_enabled() and is_bfloat16_fast():
        for layer in model.modules():
            if layer in outer:
                packed[layer] = outer[layer]
            elif isinstance(layer, OneDNNLinear) and _is_for_onednn(layer.weight.data, layer.weight, torch.bfloat16):
                packed[layer] = torch.ops.mkldnn._reorder_linear_weight(layer.weight.data, 1)
    token = _PACKED.set(packed)
    try:
        yield
    finally:
        _PACKED.reset(token)


def matmul_transposed(inputs, weight):
    """inputs weightᵀ, for float (..., inputs) and (outputs, inputs); by oneDNN as in `use_fast_kernels`."""
    if _is_for_onednn(inputs, weight):
        return _product(inputs, weight)
    return nn.functional.linear(inputs, weight)


@functools.cache
def onednn_rows():
    """int: the rows up to which oneDNN's products of float32 are faster than PyTorch's own.

    Those are MKL's, which knows Intel's processors best. It does not use the AVX-512 of AMD's, which oneDNN does; with
    AVX2 oneDNN is the faster one for few rows, and MKL for many (docs/performance.md).
    """
    if not torch.backends.mkl.is_available():
        return sys.maxsize
    try:
        maker = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        maker = platform.processor()
    if "GenuineIntel" in maker:
        return 0
    return sys.maxsize if "AVX512" in torch.backends.cpu.get_cpu_capability() else 128


def is_bfloat16_fast():
    """bool: whether oneDNN has products of bfloat16 for this CPU."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _product(inputs, weight, bias=None):
    return (_OneDNNProduct.apply if torch.is_grad_enabled() else _onednn_linear)(inputs, weight, bias)


def _onednn_linear(inputs, weight, bias):
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


class _OneDNNProduct(torch.autograd.Function):
    """oneDNN's linear layer with gradients; PyTorch has it only without, for its compiler."""

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


def _is_for_onednn(inputs, weight, dtype=torch.float32):
    return (
        is_plain(inputs)
        and weight.device.type == "cpu"
        # Neither sharded nor of another subclass, which have rules of their own.
        and type(weight) in (torch.Tensor, nn.Parameter)
        and inputs.numel() > 0
        and inputs.dtype == weight.dtype == dtype
        and (dtype != torch.float32 or inputs.numel() // inputs.shape[-1] <= onednn_rows())
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
    )


def is_plain(inputs):
    """bool: whether a function with a backward pass of its own may compute from a tensor, which is on a CPU."""
    return (
        not torch.compiler.is_compiling()
        and inputs.device.type == "cpu"
        and type(inputs) is torch.Tensor
        and not torch.jit.is_tracing()
        # `torch.func` and forward-mode differentiation need rules of their own.
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
    )
