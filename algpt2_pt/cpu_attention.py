"""Attention for training in bfloat16 on a CPU: PyTorch's, with a backward pass of plain products, or in float32."""

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from algpt2_pt.cpu_kernels import is_bfloat16_fast, is_plain

# What transformers knows it by.
NAME = "sdpa_for_bfloat16_on_cpu"
# Of longer rows the weights of a depth do not stay in the cache, and PyTorch's backward pass is faster.
LONGEST = 256


def use_fast_attention(model):
    """Have a model with PyTorch's attention train in bfloat16 on a CPU by a faster one.

    PyTorch's backward pass on a CPU does not use its products of bfloat16, and takes longer. The gradients are as exact
    as PyTorch's: scores are computed in float32 there, too. Where oneDNN has no products of bfloat16, attention is
    computed in float32, and its result rounded.

    Args:
        model: `transformers.PreTrainedModel`; it is changed, its parameters are not.

    Returns:
        the model.
    """
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(NAME)
    return model


def attention_forward(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """As transformers' attention functions; without a mask attention is causal, if the module's is."""
    states = (query, key, value)
    if query.dtype == torch.bfloat16 and torch.is_grad_enabled() and is_plain(query):
        if not is_bfloat16_fast():
            return _in_float32(module, *states, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
        is_causal = getattr(module, "is_causal", True) and attention_mask is None
        if is_causal and not dropout and query.shape == key.shape and 1 < query.shape[2] <= LONGEST:
            output = _CausalAttention.apply(*states, scaling or query.shape[-1] ** -0.5)
            return output.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(module, *states, attention_mask, scaling=scaling, dropout=dropout, **kwargs)


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


def _in_float32(module, query, key, value, attention_mask, **kwargs):
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)
    return output.to(query.dtype), None
