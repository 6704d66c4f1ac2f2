"""The ALGPT2 transformer as a KerasHub backbone."""

import keras
import numpy as np
import tensorflow as tf
from keras_hub.layers import PositionEmbedding
from keras_hub.models import Backbone

from algpt2 import ALGPT2Config
from algpt2.configuration import at_depth_of
from algpt2_tf.layers import ReversibleDense, TFALGPT2Block, projection_initializer


@keras.saving.register_keras_serializable(package="algpt2")
class TFALGPT2Backbone(Backbone):
    """The ALGPT2 transformer without a head.

    Args:
        config: `ALGPT2Config` or its dict.
        dtype: str or `keras.DTypePolicy`. The dtype of computations and weights.
        gradient_checkpointing: bool. Whether training keeps the input of every depth only and computes the blocks
            again in the backward pass: less memory, more time, the same gradients. It can be set at any time before
            training is compiled, and is not saved with a model. With and without it `training=True` computes something
            again, so that gradients of gradients need `training=False`.
        **kwargs: as in `keras_hub.models.Backbone`.

    Attributes:
        hidden_states: list of symbolic tensors (batch, length, H): what enters each depth, and what leaves the last
            one, after the last layer normalization. `keras.Model(backbone.input, backbone.hidden_states)` gives them.

    Call arguments:
        inputs: dict of `token_ids`, int32 (batch, length), and `padding_mask`, int32 (batch, length), 0 for padding.

    Returns:
        float (batch, length, E), from which the token embedding gives logits.

    Raises:
        ValueError: for a configuration with a wrong value; for ids, lengths or masks that do not fit the model.

    Example:
        >>> backbone = TFALGPT2Backbone(ALGPT2Config.from_preset("algpt2-tiny"))
        >>> ids = np.array([[1, 2, 3]])
        >>> backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)}).shape
        TensorShape([1, 3, 64])
    """

    def __init__(self, config, dtype=None, gradient_checkpointing=False, **kwargs):
        # === Layers ===
        # A copy: a model keeps the depth it was built with.
        self.config = config = ALGPT2Config.from_dict(config if isinstance(config, dict) else config.to_dict())
        normal = {"stddev": config.initializer_range}
        self.token_embedding = keras.layers.ReversibleEmbedding(
            config.vocab_size,
            config.embedding_width,
            tie_weights=config.tie_word_embeddings,
            embeddings_initializer=keras.initializers.RandomNormal(**normal),
            dtype=dtype,
            name="token_embedding",
        )
        self.position_embedding = PositionEmbedding(
            config.n_positions,
            initializer=keras.initializers.RandomNormal(**normal),
            dtype=dtype,
            name="position_embedding",
        )
        self.embeddings_add = keras.layers.Add(dtype=dtype, name="embeddings_add")
        self.project_in = self.project_out = None
        if config.tie_projections:
            self.project_in = ReversibleDense(config.n_embd, dtype=dtype, name="project_in")
        elif config.is_factorized:
            self.project_in = self._projection(config.n_embd, dtype, "project_in")
        self.embeddings_dropout = keras.layers.Dropout(config.embd_pdrop, dtype=dtype, name="embeddings_dropout")
        self.transformer_layers = [
            TFALGPT2Block(config, config.depths_of(block), dtype=dtype, name=f"block_{block}")
            for block in range(config.n_block)
        ]
        self.gradient_checkpointing = gradient_checkpointing
        self.layer_norm = keras.layers.LayerNormalization(
            epsilon=config.layer_norm_epsilon, dtype=dtype, name="layer_norm"
        )
        if config.is_factorized and not config.tie_projections:
            self.project_out = self._projection(config.embedding_width, dtype, "project_out")

        # === Functional model ===
        token_ids = keras.Input(shape=(None,), dtype="int32", name="token_ids")
        padding_mask = keras.Input(shape=(None,), dtype="int32", name="padding_mask")
        states = self._hidden_states(token_ids, padding_mask)
        super().__init__(
            inputs={"token_ids": token_ids, "padding_mask": padding_mask},
            outputs=self.project_states(states[-1]),
            dtype=dtype,
            **kwargs,
        )

        # === Config ===
        self.hidden_states = states

    @staticmethod
    def _projection(units, dtype, name):
        return keras.layers.Dense(units, kernel_initializer=projection_initializer(), dtype=dtype, name=name)

    @property
    def applications(self):
        """list of tuple: the block of each depth, and the `source` that it is called with."""
        sources = self.config.depth_sources()
        pairs = zip(self.config.layer_schedule, sources, strict=True)
        return [(self.transformer_layers[block], source) for block, source in pairs]

    @property
    def gradient_checkpointing(self):
        return all(block.gradient_checkpointing for block in self.transformer_layers)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value):
        for block in self.transformer_layers:
            block.gradient_checkpointing = value

    def embed(self, token_ids, start_index=0):
        """The embeddings, float (batch, length, E), of tokens, int32 (batch, length), from a position on."""
        tokens = self.token_embedding(token_ids)
        return self.embeddings_add((tokens, self.position_embedding(tokens, start_index=start_index)))

    def project_embeddings(self, embeddings):
        """What enters the first block, float (batch, length, H), of embeddings, float (batch, length, E)."""
        return self.embeddings_dropout(embeddings if self.project_in is None else self.project_in(embeddings))

    def _hidden_states(self, token_ids, padding_mask):
        states = [self.project_embeddings(self.embed(token_ids))]
        for block, source in self.applications:
            states.append(block(states[-1], padding_mask=padding_mask, source=source))
        states[-1] = self.layer_norm(states[-1])
        return states

    def at_depth(self, config):
        """The same layers at another depth.

        Args:
            config: `ALGPT2Config`, that of the backbone with another schedule of the same blocks.

        Returns:
            `keras.Model` from the inputs to a tuple of the last hidden states, float (batch, length, H), and the
            output, float (batch, length, E).

        Example:
            >>> backbone = TFALGPT2Backbone(ALGPT2Config(n_layer=4, n_embd=16, n_head=2, vocab_size=9))
            >>> shallow = backbone.at_depth(ALGPT2Config.from_dict(backbone.config.to_dict(), n_layer=2))
            >>> ids = np.array([[1, 2, 3]])
            >>> [states.shape for states in shallow({"token_ids": ids, "padding_mask": np.ones_like(ids)})]
            [TensorShape([1, 3, 16]), TensorShape([1, 3, 128])]
        """
        with at_depth_of(self.config, config):
            states = self._hidden_states(**self.input)[-1]
        return keras.Model(self.input, (states, self.project_states(states)))

    def project_states(self, hidden_states):
        """The output, float (batch, length, E), of the last hidden states, float (batch, length, H)."""
        if self.config.tie_projections:
            return self.project_in(hidden_states, reverse=True)
        return hidden_states if self.project_out is None else self.project_out(hidden_states)

    def call_with_cache(self, token_ids, cache, cache_update_index):
        """The output for some positions, with the keys and values of all earlier ones.

        Args:
            token_ids: int32 (batch, length), the tokens from `cache_update_index` on.
            cache: tuple with an entry for every depth, each a tuple of the keys and the values, float (batch, n_head,
                max_length, head width), or with one dimension for batch and heads, which XLA updates in place. It keeps
                its type.
            cache_update_index: int. The position of the first of `token_ids`.

        Returns:
            tuple of the output, float (batch, length, E), and the updated cache.

        Raises:
            ValueError: if the cache has no room for the tokens, as far as that is known.
        """
        length, room = token_ids.shape[1], cache[0][0].shape[-2]
        if isinstance(cache_update_index, int) and length is not None:
            check_length(cache_update_index + length, self.config)
            if room is not None and cache_update_index + length > room:
                raise ValueError(f"the cache has room for {room} tokens, not for {cache_update_index + length}")
        x = self.project_embeddings(self.embed(token_ids, cache_update_index))
        entries, functions = [], {}
        for (block, source), entry in zip(self.applications, cache, strict=True):
            if (block, source) not in functions:
                functions[block, source] = cached_block(block, source)
            x, entry = functions[block, source](x, entry, cache_update_index)
            entries.append(entry)
        return self.project_states(self.layer_norm(x)), tuple(entries)

    def __call__(self, inputs, *args, **kwargs):
        # Checked before Keras is called, whose own errors have many lines.
        check_inputs(inputs, self.config)
        return super().__call__(inputs, *args, **kwargs)

    def default_lora_layer_names(self):
        return ["c_attn"]

    def get_config(self):
        return {**super().get_config(), "config": self.config.to_dict()}


def cached_block(block, source):
    """A function of states, a cache entry and a position; in a graph one that is traced once for all depths of a block.

    Tracing is most of the time to the first token.

    Args:
        block: `algpt2_tf.layers.TFALGPT2Block`.
        source: as its call takes it.
    """

    def call(states, entry, position):
        # Called as a layer, the block would get a cache rounded to its own type.
        return block.call(states, cache=entry, cache_update_index=position, source=source)

    return call if tf.executing_eagerly() else tf.function(call, autograph=False)


def check_length(length, config):
    """Raise a ValueError for more tokens than a model has positions."""
    if length > config.n_positions:
        raise ValueError(f"the sequence has {length} tokens, more than n_positions {config.n_positions}")


def check_inputs(inputs, config, asserts=False):
    """Raise a ValueError for inputs that do not fit a model, as far as shapes and values are known.

    Args:
        inputs: dict of `token_ids` and `padding_mask`, int (batch, length), arrays or tensors.
        config: `ALGPT2Config`.
        asserts: bool. Whether a graph shall check the values of its tensors when it runs, which XLA cannot.
    """
    token_ids, padding_mask = inputs["token_ids"], inputs["padding_mask"]
    batch, length = token_ids.shape
    if 0 in (batch, length):
        raise ValueError(f"the input is {batch} x {length}; expected at least one sequence of at least one token")
    if length is not None:
        check_length(length, config)
    if None not in (*token_ids.shape, *padding_mask.shape) and tuple(token_ids.shape) != tuple(padding_mask.shape):
        found, expected = tuple(padding_mask.shape), tuple(token_ids.shape)
        raise ValueError(f"the mask is {found}; expected {expected}, an entry for each token")
    allowed = f"vocab_size {config.vocab_size} allows 0 to {config.vocab_size - 1}"
    if isinstance(token_ids, np.ndarray) or hasattr(token_ids, "numpy"):
        # Also of PyTorch's, which numpy's functions do not take.
        values = np.asarray(token_ids)
        least, largest = int(values.min()), int(values.max())
        if least < 0 or largest >= config.vocab_size:
            raise ValueError(f"token ids are {least} to {largest}; {allowed}")
    elif asserts:
        least, largest = tf.reduce_min(token_ids), tf.reduce_max(token_ids)
        fits = tf.logical_and(least >= 0, largest < config.vocab_size)
        tf.debugging.Assert(fits, [tf.strings.format("token ids are {} to {}; " + allowed, (least, largest))])


# KerasHub names its models without a framework.
ALGPT2Backbone = TFALGPT2Backbone
