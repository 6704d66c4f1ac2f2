"""Int8 weights for inference on a CPU: a fourth of the memory to read for every token."""

import warnings

import torch
from torch.ao import quantization

from algpt2.errors import InputError
from algpt2_pt.cpu_kernels import use_fast_kernels, use_plain_kernels


def quantize_int8(model):
    """Round the matrices of a model to int8, row by row, for inference on a CPU.

    Activations are rounded at every call, and products summed in int32 (PyTorch's dynamic quantization). The embedding
    that tokens are looked up in stays as it is. A quantized model is in float32 beside these matrices, and is neither
    trained nor saved.

    Args:
        model: `ALGPT2LMHeadModel` on a CPU; it is changed.

    Returns:
        the model.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> from algpt2_pt import ALGPT2LMHeadModel
        >>> model = quantize_int8(ALGPT2LMHeadModel(ALGPT2Config.from_preset("algpt2-tiny")).eval())
        >>> model(torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3, 2048])
    """
    with warnings.catch_warnings():
        # Its successor in torchao has no kernels for CPUs without AVX-512.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_", UserWarning)
        quantization.quantize_dynamic(
            # PyTorch finds the layers to quantize by their class, which fast kernels change.
            use_plain_kernels(model.float()),
            {torch.nn.Linear: quantization.per_channel_dynamic_qconfig},
            inplace=True,
        )
    model.requires_grad_(False)
    model.save_pretrained = _refuse_to_save
    return use_fast_kernels(model)


def _refuse_to_save(*args, **kwargs):
    raise InputError(
        "the model is quantized, which its files have no place for; save it before, or write int8 by `convert export`"
    )
