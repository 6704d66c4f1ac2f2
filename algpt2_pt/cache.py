"""transformers' `generate` with a cache that grows in place, and with kernels and weights that are ready for it."""

import functools
import inspect

import torch
from transformers import GenerationMixin
from transformers.cache_utils import DynamicCache, DynamicLayer

from algpt2_pt.cpu_kernels import chosen_kernels
from algpt2_pt.modeling_algpt2 import check_mask

# How many tokens a cache has room for before it is copied to a larger one.
ROOM = 64

_generate = inspect.unwrap(GenerationMixin.generate)


class FastGeneration:
    """Mixin of a model: generates what transformers' `generate` does, in less time."""

    @torch.no_grad()
    @functools.wraps(_generate)
    def generate(self, *args, **kwargs):
        # `_generate` lacks the `no_grad` of transformers, so that `generate.__wrapped__` has gradients here too.
        with chosen_kernels(self):
            return _generate(self, *args, **kwargs)

    def _prepare_model_inputs(self, *args, **kwargs):
        inputs, name, model_kwargs = super()._prepare_model_inputs(*args, **kwargs)
        mask = model_kwargs.get("attention_mask")
        if mask is not None and mask.dim() == 2 and model_kwargs.get("past_key_values") is None:
            # transformers would cut a longer one.
            check_mask(mask, *inputs.shape[:2])
        return inputs, name, model_kwargs

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        given = model_kwargs.get("past_key_values")
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        # What moves to another device and back is copied anyway.
        if cache is not given and type(cache) is DynamicCache and not cache.offloading:
            cache.layers = [GrowingLayer() for _ in cache.layers]


class GrowingLayer(DynamicLayer):
    """Keys and values of a depth, with room for more, so that not every token pays for a copy of all before it.

    While gradients are recorded, or the code is compiled, it acts as a `transformers.cache_utils.DynamicLayer`.
    Otherwise, `keys` and `values` that were taken from it earlier change when it is cropped and then extended; so does
    a shallow copy by `copy.copy`.
    """

    def lazy_initialization(self, key_states, value_states):
        super().lazy_initialization(key_states, value_states)
        self.buffers = (None, None)

    def update(self, key_states, value_states, *args, **kwargs):
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        key_buffer, value_buffer = self.buffers
        self.keys, key_buffer = _append(self.keys, key_states, key_buffer)
        self.values, value_buffer = _append(self.values, value_states, value_buffer)
        self.buffers = (key_buffer, value_buffer)
        return self.keys, self.values

    def reorder_cache(self, beam_idx):
        super().reorder_cache(beam_idx)
        # All depths are reordered before the first is extended; until then the buffers would keep the old entries.
        self.buffers = (None, None)


def _append(states, new, buffer):
    """Both, float (batch, heads, length, width), joined along their length, and the buffer that begins with them."""
    start = states.shape[-2] if states.numel() else 0
    end = start + new.shape[-2]
    if _has_room(buffer, states, new, end):
        buffer[..., start:end, :] = new
    else:
        joined = torch.cat([states, new], dim=-2)
        buffer = joined.new_empty((*joined.shape[:-2], end + ROOM, joined.shape[-1]))
        buffer[..., :end, :] = joined
    return buffer[..., :end, :], buffer


def _has_room(buffer, states, new, length):
    # After a crop the states are still the start of the buffer; after reordering or selecting they are not.
    return (
        buffer is not None
        and buffer.data_ptr() == states.data_ptr()
        and buffer.shape[:-2] == states.shape[:-2] == new.shape[:-2]
        and buffer.shape[-2] >= length
        and buffer.dtype == new.dtype
        and (torch.is_inference_mode_enabled() or not buffer.is_inference())
    )
