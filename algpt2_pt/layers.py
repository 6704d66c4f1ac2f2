"""The PyTorch layers of ALGPT2: the transformer block, and the projections of a factorized embedding."""

import math

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from algpt2_pt.products import linear

# The same function, which transformers computes in one kernel by this name and in seven by its own.
ONE_KERNEL = {"gelu_new": "gelu_pytorch_tanh"}


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention in plain matrix products, as transformers' attention interface calls it."""
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


def residual_projection(config, inputs):
    """The last layer of a residual branch; GPT-2 starts it smaller by the square root of the number of additions."""
    layer = nn.Linear(inputs, config.n_embd)
    # The additions count depths, not blocks.
    layer.initial_std = config.initializer_range / math.sqrt(2 * config.n_layer)
    return layer


def embedding_projection(inputs, outputs):
    """A projection of a factorized embedding, started with the variance 1 / inputs.

    With GPT-2's 0.02 it shrinks what it projects, and the loss takes several times as many steps.
    """
    layer = nn.Linear(inputs, outputs)
    layer.initial_std = inputs**-0.5
    return layer


class ALGPT2Attention(nn.Module):
    """Causal self-attention with a fused projection to queries, keys and values."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.head_dim = config.n_embd // config.n_head
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = residual_projection(config, config.n_embd)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states, depth, past_key_values=None, attention_mask=None, **kwargs):
        batch, length, width = hidden_states.shape
        query, key, value = (
            states.view(batch, length, -1, self.head_dim).transpose(1, 2)
            for states in linear(self.c_attn, hidden_states).split(width, dim=-1)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, depth)
        if "cache" in kwargs:
            # The paged cache of `generate_batch` asks the module which of its entries to use.
            self.layer_idx = depth
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.config.attn_pdrop if self.training else 0.0,
            **kwargs,
        )
        output = linear(self.c_proj, output.reshape(batch, length, width))
        return self.resid_dropout(output), weights


class ALGPT2MLP(nn.Module):
    """The feed-forward layer of a block."""

    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, config.inner_width)
        self.c_proj = residual_projection(config, config.inner_width)
        self.act = ACT2FN[ONE_KERNEL.get(config.activation_function, config.activation_function)]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states):
        return self.dropout(linear(self.c_proj, self.act(linear(self.c_fc, hidden_states))))


class ALGPT2Block(GradientCheckpointingLayer):
    """A pre-normalization GPT-2 block; `depth` tells its cache entry apart from those of its other applications."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = ALGPT2Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = ALGPT2MLP(config)

    def forward(self, hidden_states, depth, past_key_values=None, attention_mask=None, **kwargs):
        attention, _ = self.attn(self.ln_1(hidden_states), depth, past_key_values, attention_mask, **kwargs)
        hidden_states = hidden_states + attention
        return hidden_states + self.mlp(self.ln_2(hidden_states))


class ALGPT2TiedProjection(nn.Module):
    """A projection with a bias of its own and the transposed matrix of another layer."""

    def __init__(self, width):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_states, weight):
        return nn.functional.linear(hidden_states, weight.t(), self.bias)
