"""Matrix products on a CPU by oneDNN."""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules import module as hooks


def linear(layer, inputs):
    """`layer(inputs)`, computed by oneDNN for float32 on a CPU.

    PyTorch itself gives these products to MKL, which does not use the AVX-512 of AMD's processors; oneDNN does. The
    gradients cannot be differentiated once more, nor by `torch.func`; `torch.backends.mkldnn.flags(enabled=False)`
    leaves all to PyTorch.

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
    if _is_plain(layer) and _is_for_onednn(inputs, layer.weight):
        return _OneDNNLinear.apply(inputs, layer.weight, layer.bias)
    return layer(inputs)


def matmul_transposed(inputs, weight):
    """inputs weightᵀ, for float (rows, inputs) and (outputs, inputs); by oneDNN as in `linear`."""
    if _is_for_onednn(inputs, weight):
        return _OneDNNLinear.apply(inputs, weight, None)
    return nn.functional.linear(inputs, weight)


class _OneDNNLinear(torch.autograd.Function):
    """A linear layer that keeps its inputs as they are; PyTorch's own would keep copies in oneDNN's layout."""

    @staticmethod
    def forward(ctx, inputs, weight, bias):
        ctx.save_for_backward(inputs, weight)
        return nn.functional.linear(inputs.to_mkldnn(), weight, bias).to_dense()

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        inputs, weight = ctx.saved_tensors
        gradients = torch.ops.aten.mkldnn_linear_backward(
            inputs.to_mkldnn(), upstream.to_mkldnn(), weight, ctx.needs_input_grad
        )
        pairs = zip(gradients, ctx.needs_input_grad, strict=True)
        return tuple(gradient.to_dense() if is_needed else None for gradient, is_needed in pairs)


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


def _is_for_onednn(inputs, weight):
    return (
        not torch.compiler.is_compiling()
        and inputs.device.type == weight.device.type == "cpu"
        and type(inputs) is torch.Tensor
        and inputs.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
    )
