"""The Keras layers of ALGPT2: the transformer block, and a projection that works both ways."""

import math

import keras
import numpy as np
from keras import ops
from keras.src.backend.common.stateless_scope import in_stateless_scope

from algpt2 import ALGPT2Config
from algpt2.checkpoints.weight_maps.own import KERAS_LINEAR_LAYERS

# Written out where TensorFlow's own functions round their constants to float32, which float64 models would show.
ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1.0 + ops.erf(x * math.sqrt(0.5))),
    "gelu_new": lambda x: 0.5 * x * (1.0 + ops.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x * x * x))),
    "quick_gelu": lambda x: x * ops.sigmoid(1.702 * x),
    "relu": ops.relu,
    "sigmoid": ops.sigmoid,
    "silu": ops.silu,
    "tanh": ops.tanh,
}
ACTIVATIONS["gelu_pytorch_tanh"] = ACTIVATIONS["gelu_new"]
ACTIVATIONS["swish"] = ACTIVATIONS["silu"]


def projection_initializer():
    """Normal with the variance 1 / inputs, for the projections of a factorized embedding.

    With GPT-2's standard deviation of 0.02 they shrink what they project, and training takes several times as many
    steps.
    """
    return keras.initializers.VarianceScaling(1.0, mode="fan_in", distribution="untruncated_normal")


class DepthDense(keras.layers.Layer):
    """What one depth adds to a shared dense layer: a bias, a product of low rank, or both; at first nothing.

    Args:
        units: int. The output width.
        config: `ALGPT2Config`.
        **kwargs: as in `keras.layers.Layer`.

    Call arguments:
        inputs: float (batch, length, input width), of the shared layer.
        outputs: float (batch, length, units), of the shared layer.
        training: bool.

    Returns:
        float (batch, length, units).
    """

    def __init__(self, units, config, **kwargs):
        super().__init__(**kwargs)
        self.units, self.rank, self.use_bias = units, config.depth_lora_rank, config.depth_biases
        self.down = self.up = self.bias = None

    def build(self, input_shape, _=None):
        if self.rank:
            options = {"use_bias": False, "dtype": self.dtype_policy}
            self.down = keras.layers.Dense(
                self.rank, kernel_initializer=projection_initializer(), name="down", **options
            )
            self.up = keras.layers.Dense(self.units, kernel_initializer="zeros", name="up", **options)
            self.down.build(input_shape)
            self.up.build((*input_shape[:-1], self.rank))
        if self.use_bias:
            self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")

    def call(self, inputs, outputs, training=None):
        if self.down is not None:
            outputs = outputs + self.up(self.down(inputs, training=training), training=training)
        return outputs if self.bias is None else outputs + self.bias


class TFALGPT2Depth(keras.layers.Layer):
    """What belongs to one depth of a shared block; its layers are named as those of the block.

    Args:
        config: `ALGPT2Config`.
        **kwargs: as in `keras.layers.Layer`.
    """

    def __init__(self, config, **kwargs):
        super().__init__(**kwargs)
        self.config = config

    def build(self, input_shape=None):
        config = self.config
        if config.depth_norms:
            self.ln_1, self.ln_2 = (layer_norm(config, self.dtype_policy, name) for name in ("ln_1", "ln_2"))
            for norm in (self.ln_1, self.ln_2):
                norm.build((None, None, config.n_embd))
        if config.depth_biases or config.depth_lora_rank:
            for name, linear in KERAS_LINEAR_LAYERS.items():
                inputs, outputs = config.linear_layers[linear]
                layer = DepthDense(outputs, config, dtype=self.dtype_policy, name=name)
                layer.build((None, None, inputs))
                setattr(self, name, layer)
        self.built = True


def layer_norm(config, dtype, name):
    """A layer normalization of a block."""
    return keras.layers.LayerNormalization(epsilon=config.layer_norm_epsilon, dtype=dtype, name=name)


@keras.saving.register_keras_serializable(package="algpt2")
class TFALGPT2Block(keras.layers.Layer):
    """A pre-normalization GPT-2 block, applied at every depth that the layer schedule gives it.

    Training computes attention weights, normalizations and activations again in the backward pass, which takes little
    time and keeps little memory (Korthikanti et al., 2022, https://arxiv.org/abs/2205.05198, section 5); gradients
    cannot be differentiated once more then.

    Args:
        config: `ALGPT2Config` or its dict.
        own_depths: list of int. The depths that have parameters of their own.
        **kwargs: as in `keras.layers.Layer`.

    Attributes:
        gradient_checkpointing: bool. Whether training computes the whole block again, and keeps nothing inside it (Chen
            et al., 2016, https://arxiv.org/abs/1604.06174); not saved with a model.

    Call arguments:
        hidden_states: float (batch, length, H).
        padding_mask: int or bool (batch, length), 0 for padding; optional.
        cache: tuple of the keys and the values so far, as in `TFALGPT2Backbone.call_with_cache`; optional.
        cache_update_index: int, the position of the first of `hidden_states`; goes with `cache`.
        source: int, one of `own_depths`, whose parameters to take; `None` where there are none.
        training: bool. Whether to apply dropout.

    Returns:
        float (batch, length, H); with a cache, a tuple of it and the updated cache.

    Example:
        >>> block = TFALGPT2Block(ALGPT2Config.from_preset("algpt2-tiny"))
        >>> block(np.zeros((2, 5, 128), "float32")).shape
        TensorShape([2, 5, 128])
    """

    def __init__(self, config, own_depths=(), **kwargs):
        super().__init__(**kwargs)
        self.config = config if isinstance(config, ALGPT2Config) else ALGPT2Config.from_dict(config)
        self.own_depths = list(own_depths)
        self.head_width = self.config.n_embd // self.config.n_head
        self.activation = ACTIVATIONS[self.config.activation_function]
        self.gradient_checkpointing = False

    def build(self, input_shape):
        config = self.config
        has_depths = bool(self.own_depths)
        hidden_shape = (None, None, config.n_embd)
        if not (has_depths and config.depth_norms):
            self.ln_1, self.ln_2 = (
                self._built(layer_norm(config, self.dtype_policy, name), hidden_shape) for name in ("ln_1", "ln_2")
            )
        residual_std = config.initializer_range / math.sqrt(2 * config.n_layer)
        for name, linear in KERAS_LINEAR_LAYERS.items():
            std = residual_std if name.endswith("c_proj") else config.initializer_range
            inputs, outputs = config.linear_layers[linear]
            layer = keras.layers.Dense(
                outputs,
                use_bias=not (has_depths and config.depth_biases),
                kernel_initializer=keras.initializers.RandomNormal(stddev=std),
                dtype=self.dtype_policy,
                name=name,
            )
            setattr(self, name, self._built(layer, (None, None, inputs)))
        self.attn_dropout = self._built(self._dropout("attn_dropout", config.attn_pdrop), hidden_shape)
        self.resid_dropout = self._built(self._dropout("resid_dropout", config.resid_pdrop), hidden_shape)
        self.depths = [
            self._built(TFALGPT2Depth(config, dtype=self.dtype_policy, name=f"depth_{depth}"), hidden_shape)
            for depth in self.own_depths
        ]
        self.built = True

    def _built(self, layer, shape):
        layer.build(shape)
        return layer

    def _dropout(self, name, rate):
        return keras.layers.Dropout(rate, dtype=self.dtype_policy, name=name)

    def call(self, hidden_states, padding_mask=None, cache=None, cache_update_index=0, source=None, training=None):
        own = None if source is None else self.depths[self.own_depths.index(source)]
        # Gradients do not pass from a recomputation to weights that a scope replaces.
        if not training or cache is not None or in_stateless_scope():
            return self._apply(_kept, own, hidden_states, padding_mask, cache, cache_update_index, training)
        if not self.gradient_checkpointing:
            return self._apply(self._recomputed, own, hidden_states, padding_mask, training=True)
        return self._recomputed(
            lambda states: self._apply(_kept, own, states, padding_mask, training=True),
            hidden_states,
            dropouts=((self.attn_dropout, 1), (self.resid_dropout, 2)),
        )

    def _recomputed(self, function, *inputs, dropouts=()):
        """`function(*inputs)`, computed again in the backward pass instead of keeping what is inside it.

        Args:
            function: function of tensors.
            *inputs: tensors: all, besides weights, that gradients must reach.
            dropouts: tuple of tuples of a dropout layer and how often the function calls it.
        """
        # The recomputation must drop what the first pass dropped, so that both start from the same state of the random
        # numbers: the first seed that was drawn.
        generators = [(layer.seed_generator, count) for layer, count in dropouts if layer.rate > 0]
        if not generators:
            return keras.remat(function)(*inputs)
        seeds = [[generator.next() for _ in range(count)] for generator, count in generators]
        mapping = [(generator.state, first) for (generator, _), (first, *_) in zip(generators, seeds, strict=True)]

        def apply(*inputs):
            with keras.StatelessScope(mapping):
                return function(*inputs)

        return keras.remat(apply)(*inputs)

    def _apply(self, run, own, hidden_states, padding_mask, cache=None, cache_update_index=0, training=None):
        """The block, with `run(function, *inputs, dropouts)` for what is cheap to compute and large to keep."""
        norms = own if own is not None and self.config.depth_norms else self
        attention, cache = self._attend(
            run, own, norms.ln_1, hidden_states, padding_mask, cache, cache_update_index, training
        )
        hidden_states = self._add(hidden_states, self.resid_dropout(attention, training=training))
        # Each function ends with its matrix product, so that graphs do not compute that again: no gradient depends on
        # its output. `training` is passed on, since Keras does not know it during a recomputation.
        inner = run(lambda states: self._linear("c_fc", own, norms.ln_2(states), training), hidden_states)
        output = run(lambda states: self._linear("mlp_c_proj", own, self.activation(states), training), inner)
        hidden_states = self._add(hidden_states, self.resid_dropout(output, training=training))
        return hidden_states if cache is None else (hidden_states, cache)

    def _add(self, hidden_states, change):
        multiplier = self.config.residual_multiplier
        return hidden_states + (change if multiplier == 1 else change * multiplier)

    def _linear(self, name, own, inputs, training):
        """A linear layer of the block, with what its depth adds to it."""
        outputs = getattr(self, name)(inputs, training=training)
        if own is None or not hasattr(own, name):
            return outputs
        return getattr(own, name)(inputs, outputs, training=training)

    def _attend(self, run, own, norm, hidden_states, padding_mask, cache, cache_update_index, training):
        batch, length = ops.shape(hidden_states)[:2]
        heads = (batch, length, self.config.n_head, self.head_width)
        projected = run(lambda states: self._linear("c_attn", own, norm(states), training), hidden_states)
        query, key, value = (
            ops.transpose(ops.reshape(states, heads), (0, 2, 1, 3)) for states in ops.split(projected, 3, axis=-1)
        )
        if cache is not None:
            leading = len(cache[0].shape) - 2
            if leading == 1:
                shape = (-1, length, self.head_width)
                query, key, value = (ops.reshape(states, shape) for states in (query, key, value))
            start = (0,) * leading + (cache_update_index, 0)
            key, value = cache = tuple(
                ops.slice_update(entry, start, ops.cast(states, entry.dtype))
                for entry, states in zip(cache, (key, value), strict=True)
            )

        positions = ops.arange(length) + cache_update_index
        mask = ops.arange(ops.shape(key)[-2])[None, :] <= positions[:, None]
        if padding_mask is not None:
            is_token = ops.cast(padding_mask, "bool")[:, None]
            of_heads = is_token[:, None] if len(key.shape) == 4 else ops.repeat(is_token, self.config.n_head, axis=0)
            mask = ops.logical_and(mask, of_heads)

        def weigh(query, key, value):
            scores = ops.matmul(query, ops.swapaxes(key, -1, -2)) * self.head_width**-0.5
            # Half-precision sums of many small weights lose digits, so the softmax has at least float32.
            softmax_dtype = keras.backend.result_type(self.compute_dtype, "float32")
            scores = ops.cast(scores, softmax_dtype)
            weights = ops.softmax(ops.where(mask, scores, float(np.finfo(softmax_dtype).min)), axis=-1)
            weights = self.attn_dropout(ops.cast(weights, self.compute_dtype), training=training)
            return ops.matmul(weights, value)

        output = run(weigh, query, key, value, dropouts=((self.attn_dropout, 1),))
        output = ops.reshape(output, (batch, self.config.n_head, length, self.head_width))
        output = ops.reshape(ops.transpose(output, (0, 2, 1, 3)), (batch, length, self.config.n_embd))
        return self._linear("attn_c_proj", own, output, training), cache

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "config": self.config.to_dict(), "own_depths": self.own_depths}


def _kept(function, *inputs, dropouts=()):
    return function(*inputs)


@keras.saving.register_keras_serializable(package="algpt2")
class ReversibleDense(keras.layers.Layer):
    """A dense layer that also projects backwards with its transposed matrix and a second bias.

    Args:
        units: int. The output width.
        **kwargs: as in `keras.layers.Layer`.

    Call arguments:
        inputs: float (..., input width), or (..., units) if `reverse`.
        reverse: bool. Whether to project backwards.
    """

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, input_shape):
        shape = (input_shape[-1], self.units)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=projection_initializer())
        self.bias = self.add_weight(name="bias", shape=(self.units,), initializer="zeros")
        self.reverse_bias = self.add_weight(name="reverse_bias", shape=(input_shape[-1],), initializer="zeros")

    def call(self, inputs, reverse=False):
        if reverse:
            return ops.matmul(inputs, ops.transpose(self.kernel)) + self.reverse_bias
        return ops.matmul(inputs, self.kernel) + self.bias

    def compute_output_spec(self, inputs, reverse=False):
        width = self.kernel.shape[0] if reverse else self.units
        return keras.KerasTensor((*inputs.shape[:-1], width), dtype=self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "units": self.units}
