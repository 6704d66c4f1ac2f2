"""Matrix products on a CPU by oneDNN."""

import torch
from torch import nn


def linear(layer, inputs):
    """`layer(inputs)`, computed by oneDNN for float32 on a CPU.

    PyTorch itself gives these products to MKL, which does not use the AVX-512 of AMD's processors; oneDNN does. The
    gradients cannot be differentiated once more; `torch.backends.mkldnn.flags(enabled=False)` leaves all to PyTorch.

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
    is_plain = type(layer) is nn.Linear and type(layer.weight) is nn.Parameter
    is_hooked = layer._forward_hooks or layer._forward_pre_hooks
    if is_plain and not is_hooked and _is_for_onednn(inputs, layer.weight):
        return layer(inputs.to_mkldnn()).to_dense()
    return layer(inputs)


def matmul_transposed(inputs, weight):
    """inputs weightᵀ, for float (rows, inputs) and (outputs, inputs); by oneDNN as in `linear`."""
    if _is_for_onednn(inputs, weight):
        return nn.functional.linear(inputs.to_mkldnn(), weight).to_dense()
    return nn.functional.linear(inputs, weight)


def _is_for_onednn(inputs, weight):
    return (
        not torch.compiler.is_compiling()
        and inputs.device.type == "cpu"
        and type(inputs) is torch.Tensor
        and inputs.dtype == weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()
    )
