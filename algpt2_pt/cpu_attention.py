"""Attention for training in bfloat16 on a CPU: PyTorch's forward, and a backward pass of plain matrix products."""

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from algpt2_pt.cpu_kernels import is_bfloat16_fast, is_plain

# What transformers knows it by.
NAME = "sdpa_with_plain_backward"
# Of longer rows the weights of a depth do not stay in the cache, and PyTorch's backward pass is faster.
LONGEST = 256


def use_plain_backward(model):
    """Have a model with PyTorch's attention compute its gradients by plain products where that is faster.

    PyTorch's backward pass on a CPU does not use its products of bfloat16, and takes longer. The gradients are as exact
    as PyTorch's: scores are computed in float32 there, too.

    Args:
        model: `transformers.PreTrainedModel`; it is changed, its parameters are not.

    Returns:
        the model.
    """
    if model.config._attn_implementation == "sdpa" and is_bfloat16_fast():
        model.set_attn_implementation(NAME)
    return model


def attention_forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """As transformers' attention functions; without a mask attention is causal, if the module's is."""
    if getattr(module, "is_causal", True) and _is_for_products(query, key, attention_mask, dropout):
        output = _CausalAttention.apply(query, key, value, scaling or query.shape[-1] ** -0.5)
        return output.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)


AttentionInterface.register(NAME, attention_forward)
AttentionMaskInterface.register(NAME, sdpa_mask)


class _CausalAttention(torch.autograd.Function):
    """Causal attention of query, key and value, bfloat16 (batch, heads, length, width)."""

    @staticmethod
    def forward(ctx, query, key, value, scaling):
        ctx.save_for_backward(query, key, value)
        ctx.scaling = scaling
        return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        length = upstream.shape[2]
        mask = torch.full((length, length), -torch.inf).triu_(1)
        gradients = [upstream.new_empty(upstream.shape) for _ in range(3)]
        # Row by row, so that the weights of all heads stay in the cache.
        for row in zip(*ctx.saved_tensors, upstream, *gradients, strict=True):
            query, key, value, given = (states.contiguous() for states in row[:4])
            query_gradient, key_gradient, value_gradient = row[4:]
            # Rounded to bfloat16, large scores would have large errors.
            scores = torch.baddbmm(mask, query.float(), key.float().transpose(1, 2), alpha=ctx.scaling)
            weights = torch.softmax(scores, -1).to(query.dtype)
            torch.bmm(weights.transpose(1, 2), given, out=value_gradient)
            weights_gradient = torch.bmm(given, value.transpose(1, 2))
            scores_gradient = torch._softmax_backward_data(weights_gradient, weights, -1, weights.dtype)
            scores_gradient *= ctx.scaling
            torch.bmm(scores_gradient, key, out=query_gradient)
            torch.bmm(scores_gradient.transpose(1, 2), query, out=key_gradient)
        return *gradients, None


def _is_for_products(query, key, attention_mask, dropout):
    return (
        torch.is_grad_enabled()
        and is_plain(query)
        and query.dtype == torch.bfloat16
        and query.shape == key.shape
        and 1 < query.shape[2] <= LONGEST
        and attention_mask is None
        and not dropout
    )
