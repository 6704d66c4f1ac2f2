"""The ALGPT2 transformer as a KerasHub backbone."""

import keras
from keras_hub.layers import PositionEmbedding
from keras_hub.models import Backbone

from algpt2 import ALGPT2Config
from algpt2_tf.layers import ReversibleDense, TFALGPT2Block, projection_initializer


@keras.saving.register_keras_serializable(package="algpt2")
class TFALGPT2Backbone(Backbone):
    """The ALGPT2 transformer without a head.

    Args:
        config: `ALGPT2Config` or its dict.
        dtype: str or `keras.DTypePolicy`. The dtype of computations and weights.
        gradient_checkpointing: bool. Whether training keeps the input of every depth only and computes the blocks
            again in the backward pass: less memory, more time, the same gradients. It can be set at any time before
            training is compiled, and is not saved with a model.
        **kwargs: as in `keras_hub.models.Backbone`.

    Call arguments:
        inputs: dict of `token_ids`, int32 (batch, length), and `padding_mask`, int32 (batch, length), 0 for padding.

    Returns:
        float (batch, length, H), the hidden states after the last layer normalization.

    Raises:
        ValueError: for a configuration with a wrong value, or a sequence longer than `n_positions`.

    Example:
        >>> import numpy as np
        >>> backbone = TFALGPT2Backbone(ALGPT2Config.from_preset("algpt2-tiny"))
        >>> ids = np.array([[1, 2, 3]])
        >>> backbone({"token_ids": ids, "padding_mask": np.ones_like(ids)}).shape
        TensorShape([1, 3, 128])
    """

    def __init__(self, config, dtype=None, gradient_checkpointing=False, **kwargs):
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
        self.project_in = None
        if config.tie_projections:
            self.project_in = ReversibleDense(config.n_embd, dtype=dtype, name="project_in")
        elif config.is_factorized:
            self.project_in = keras.layers.Dense(
                config.n_embd, kernel_initializer=projection_initializer(), dtype=dtype, name="project_in"
            )
        self.embeddings_dropout = keras.layers.Dropout(config.embd_pdrop, dtype=dtype, name="embeddings_dropout")
        self.transformer_layers = [
            TFALGPT2Block(config, dtype=dtype, name=f"block_{block}") for block in range(config.n_block)
        ]
        self.gradient_checkpointing = gradient_checkpointing
        self.layer_norm = keras.layers.LayerNormalization(
            epsilon=config.layer_norm_epsilon, dtype=dtype, name="layer_norm"
        )

        token_ids = keras.Input(shape=(None,), dtype="int32", name="token_ids")
        padding_mask = keras.Input(shape=(None,), dtype="int32", name="padding_mask")
        states = [self._embed(token_ids)]
        for block in config.layer_schedule:
            states.append(self.transformer_layers[block](states[-1], padding_mask=padding_mask))
        states[-1] = self.layer_norm(states[-1])
        super().__init__(
            inputs={"token_ids": token_ids, "padding_mask": padding_mask}, outputs=states[-1], dtype=dtype, **kwargs
        )

        # The symbolic input of every depth and the output, for `keras.Model(backbone.input, backbone.hidden_states)`.
        self.hidden_states = states

    @property
    def gradient_checkpointing(self):
        return all(block.gradient_checkpointing for block in self.transformer_layers)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value):
        for block in self.transformer_layers:
            block.gradient_checkpointing = value

    def _embed(self, token_ids, start_index=0):
        tokens = self.token_embedding(token_ids)
        x = self.embeddings_add((tokens, self.position_embedding(tokens, start_index=start_index)))
        if self.project_in is not None:
            x = self.project_in(x)
        return self.embeddings_dropout(x)

    def call_with_cache(self, token_ids, cache, cache_update_index):
        """The hidden states of some positions, with the keys and values of all earlier ones.

        Args:
            token_ids: int32 (batch, length), the tokens from `cache_update_index` on.
            cache: tuple with an entry for every depth, each a tuple of the keys and the values, float (batch, n_head,
                max_length, head width).
            cache_update_index: int. The position of the first of `token_ids`.

        Returns:
            tuple of the hidden states, float (batch, length, H), and the updated cache.
        """
        x = self._embed(token_ids, cache_update_index)
        entries = []
        for block, entry in zip(self.config.layer_schedule, cache, strict=True):
            x, entry = self.transformer_layers[block](x, cache=entry, cache_update_index=cache_update_index)
            entries.append(entry)
        return self.layer_norm(x), tuple(entries)

    def call(self, inputs, training=None, mask=None):
        length = inputs["token_ids"].shape[-1]
        if length is not None and length > self.config.n_positions:
            raise ValueError(f"the sequence has {length} tokens, more than n_positions {self.config.n_positions}")
        return super().call(inputs, training=training, mask=mask)

    def default_lora_layer_names(self):
        return ["c_attn"]

    def get_config(self):
        return {**super().get_config(), "config": self.config.to_dict()}
