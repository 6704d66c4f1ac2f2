"""What makes a PyTorch model faster, put on it from outside: products on a CPU, and GELU in one kernel."""

import contextlib
import functools
import platform
import sys
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn
from torch.autograd import forward_ad
from transformers.activations import NewGELUActivation

from algpt2_pt.modeling_algpt2 import ALGPT2DepthLinear

_CHOSEN = ContextVar("chosen", default=MappingProxyType({}))
# Of so many PyTorch's own products of bfloat16 are the faster ones, where the CPU has no instructions for it.
FEW_ROWS = 6
# oneDNN takes some 50 microseconds for any product (measured on an AMD with AVX2): those of up to so many rows with
# matrices of fewer numbers are left to PyTorch.
SMALL_ROWS, SMALL_MATRIX = 128, 2**18


def use_fast_kernels(model):
    """Compute the linear layers of a model by oneDNN where that is faster, and GPT-2's GELU in one kernel.

    PyTorch gives products of float32 on a CPU to MKL. On AMD's processors some are faster by oneDNN, as `onednn_rows`
    says. That is a rule of the processor and not a measurement, so that a run that goes on in another process has the
    same numbers to the last bit. Where oneDNN has no products of bfloat16, PyTorch multiplies it number by number;
    with more than a few rows it is multiplied in float32 here, and the result rounded, as oneDNN does.
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
    classes = {nn.Linear: FastLinear, ALGPT2DepthLinear: FastDepthLinear}
    return _swap(model, classes, {NewGELUActivation: lambda: nn.GELU(approximate="tanh")})


def use_plain_kernels(model):
    """Undo `use_fast_kernels`; returns the model."""
    return _swap(model, {FastLinear: nn.Linear, FastDepthLinear: ALGPT2DepthLinear}, {nn.GELU: NewGELUActivation})


def _swap(model, classes, activations):
    for module in list(model.modules()):
        # As layers keep their parameters and hooks, a class is all that changes.
        module.__class__ = classes.get(type(module), type(module))
        for name, child in module.named_children():
            if type(child) in activations:
                setattr(module, name, activations[type(child)]())
    return model


class FastLinear(nn.Linear):
    """`torch.nn.Linear` by the fastest kernel for its inputs."""

    def forward(self, inputs):
        # The compiler does not know context variables.
        chosen = None if torch.is_grad_enabled() or torch.compiler.is_compiling() else _CHOSEN.get().get(self)
        if (
            chosen is not None
            and inputs.dim() > 1
            and 0 < inputs.numel() <= chosen.rows * self.in_features
            and inputs.dtype == self.weight.dtype == chosen.dtype
            and not torch.is_autocast_enabled("cpu")
        ):
            return chosen.multiply(inputs, self.weight if chosen.packed is None else chosen.packed, self.bias)
        return multiply_transposed(inputs, self.weight, self.bias)


class FastDepthLinear(ALGPT2DepthLinear):
    """`ALGPT2DepthLinear` by the fastest kernels for its inputs."""

    def forward(self, inputs, outputs):
        # Of a few rows both are PyTorch's unless the rank is large, and looking for a kernel takes as long as they do.
        # The compiler would make conditions of their number.
        if self.down is None or torch.compiler.is_compiling() or inputs.numel() <= FEW_ROWS * inputs.shape[-1]:
            return super().forward(inputs, outputs)
        return outputs + multiply_transposed(multiply_transposed(inputs, self.down), self.up, self.bias)


class _Chosen(NamedTuple):
    """What multiplies up to so many rows of a dtype: a function, and the weight in another layout, if it takes one."""

    multiply: Callable
    packed: torch.Tensor | None
    dtype: torch.dtype
    rows: int


@contextlib.contextmanager
def chosen_kernels(model):
    """A context in which the linear layers of a model without gradients know their kernels, for a few rows at least.

    To look for one at every call takes a tenth of a token's time. bfloat16 weights are read from copies in oneDNN's own
    layout, where it has products of them: one of one row takes half the time, and making the copy of a shared block
    takes as long as one or two tokens. float32 gains nothing by that. The weights must not change meanwhile, and
    `torch.func` and `torch.backends.mkldnn.flags` belong outside.

    Args:
        model: `torch.nn.Module` with `use_fast_kernels`. Only layers on a CPU get a kernel.

    Example:
        >>> layer = use_fast_kernels(nn.Linear(64, 64).bfloat16())
        >>> with torch.no_grad(), chosen_kernels(layer):
        ...     layer(torch.zeros(1, 64, dtype=torch.bfloat16)).shape
        torch.Size([1, 64])
    """
    outer, chosen = _CHOSEN.get(), {}
    if not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu"):
        layers = [layer for layer in model.modules() if isinstance(layer, FastLinear)]
        chosen = {layer: outer.get(layer) or _choose(layer) for layer in layers}
    token = _CHOSEN.set(chosen)
    try:
        yield
    finally:
        _CHOSEN.reset(token)


def _choose(layer):
    """The `_Chosen` of a layer, or None if PyTorch should decide at every call."""
    weight, row = layer.weight, layer.weight.data[:1]
    if not _is_replaceable(row, weight):
        return None
    if weight.dtype == torch.bfloat16 and is_bfloat16_fast():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.data, 1)
        return _Chosen(_onednn_linear, packed, weight.dtype, sys.maxsize)
    return _Chosen(_kernel(row, weight, layer.bias) or nn.functional.linear, None, weight.dtype, FEW_ROWS)


def multiply_transposed(inputs, weight, bias=None):
    """inputs weightᵀ + bias, for float (..., inputs), (outputs, inputs) and (outputs,), as in `use_fast_kernels`."""
    kernel = _kernel(inputs, weight, bias)
    if kernel is None:
        return nn.functional.linear(inputs, weight, bias)
    return _Product.apply(kernel, inputs, weight, bias) if torch.is_grad_enabled() else kernel(inputs, weight, bias)


@functools.cache
def onednn_rows():
    """int: the rows up to which oneDNN's products of float32, but for small ones, are faster than PyTorch's own.

    Those are MKL's, which knows Intel's processors best. It does not use the AVX-512 of AMD's, which oneDNN does; with
    AVX2 oneDNN is the faster one for few rows, and MKL for many (docs/performance-training.md).
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


def _kernel(inputs, weight, bias):
    """What replaces `torch.nn.functional.linear`, a function of the same arguments without gradients, or None."""
    if not _is_replaceable(inputs, weight):
        return None
    rows = inputs.numel() // inputs.shape[-1]
    dtypes = {tensor.dtype for tensor in (inputs, weight, bias) if tensor is not None}
    # Autocast leaves float64 as it is.
    if torch.is_autocast_enabled("cpu") and torch.float64 not in dtypes:
        dtypes = {torch.get_autocast_dtype("cpu")}
    is_small = rows <= SMALL_ROWS and weight.numel() < SMALL_MATRIX
    if dtypes == {torch.float32} and rows <= onednn_rows() and not is_small:
        return _onednn_linear
    if dtypes == {torch.bfloat16} and rows > FEW_ROWS and not is_bfloat16_fast():
        return _widened_linear
    return None


def _is_replaceable(inputs, weight):
    """bool: whether another kernel may multiply these."""
    return (
        is_plain(inputs)
        and weight.device.type == "cpu"
        # Neither sharded nor of another subclass, which have rules of their own.
        and type(weight) in (torch.Tensor, nn.Parameter)
        and inputs.dim() > 0
        and inputs.numel() > 0
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
    )


def _onednn_linear(inputs, weight, bias=None):
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


def _widened_linear(inputs, weight, bias=None):
    """A linear layer of bfloat16, or of what autocast rounds to it, by products of float32."""
    inputs, weight, bias = (None if each is None else each.bfloat16().float() for each in (inputs, weight, bias))
    with torch.autocast("cpu", enabled=False):
        return multiply_transposed(inputs, weight, bias).bfloat16()


class _Product(torch.autograd.Function):
    """A linear layer by a kernel, with gradients; oneDNN's has none, as PyTorch has it for its compiler."""

    @staticmethod
    def forward(kernel, inputs, weight, bias):
        return kernel(inputs, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[1:3])

    @staticmethod
    def backward(ctx, upstream):
        # Under autocast they were not rounded yet.
        inputs, weight = (saved.to(upstream.dtype) for saved in ctx.saved_tensors)
        _, needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        rows = upstream.reshape(-1, upstream.shape[-1])
        return (
            None,
            multiply_transposed(upstream, weight.t()) if needs_inputs else None,
            multiply_transposed(rows.t(), inputs.reshape(-1, inputs.shape[-1]).t()) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
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
