"""PyTorch ALGPT2: GPT-2 whose blocks follow a layer schedule, with factorized embeddings.

This file and its configuration are all that a saved model needs: they travel with it.

Letters in the comments: V is the vocabulary, P the positions, E the width of the embeddings, H that of the hidden
states, D the number of depths.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.generation import GenerationMixin
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import ModelOutput, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_algpt2 import ALGPT2Config


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Attention in plain matrix products, as transformers' attention interface calls it."""
    weights = torch.matmul(query, key.transpose(-1, -2)) * scaling  # (batch, heads, length, keys)
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


def check_mask(attention_mask, batch, length):
    """Raise a ValueError for a mask of another shape than (batch, length)."""
    found, expected = tuple(attention_mask.shape), (batch, length)
    if found != expected:
        raise ValueError(f"the mask is {found}; expected {expected}, an entry for each token")


def residual_projection(config, inputs, bias=True):
    """The last layer of a residual branch; GPT-2 starts it smaller by the square root of the number of additions."""
    layer = nn.Linear(inputs, config.n_embd, bias=bias)
    # The additions count depths, not blocks.
    layer.initial_std = config.initializer_range / math.sqrt(2 * config.n_layer)
    return layer


def embedding_projection(inputs, outputs):
    """A projection of a factorized embedding, started with the variance 1 / inputs.

    With GPT-2's standard deviation of 0.02 it shrinks what it projects, and training takes several times as many steps.
    """
    layer = nn.Linear(inputs, outputs)
    layer.initial_std = inputs**-0.5
    return layer


class AtDepth:
    """A shared layer at one of its depths, for what asks a layer for its number.

    Args:
        layer: `torch.nn.Module`.
        depth: int.
    """

    def __init__(self, layer, depth):
        self.layer, self.layer_idx = layer, depth

    def __getattr__(self, name):
        return getattr(self.layer, name)


class ALGPT2DepthLinear(nn.Module):
    """What one depth adds to a shared linear layer: a bias, a product of low rank, or both.

    It starts as nothing: `down` is drawn with the variance 1 / inputs, `up` and `bias` are zero.
    """

    def __init__(self, config, inputs, outputs):
        super().__init__()
        rank = config.depth_lora_rank
        self.bias = nn.Parameter(torch.zeros(outputs)) if config.depth_biases else None
        self.down = nn.Parameter(torch.zeros(rank, inputs)) if rank else None
        self.up = nn.Parameter(torch.zeros(outputs, rank)) if rank else None

    def forward(self, inputs, outputs):
        if self.down is None:
            return outputs + self.bias
        return outputs + nn.functional.linear(nn.functional.linear(inputs, self.down), self.up, self.bias)


class ALGPT2Depth(nn.ModuleDict):
    """What belongs to one depth of a shared block.

    No layer ends in the name of one of the block, which tools look for by the end of their names.
    """

    def __init__(self, config):
        super().__init__()
        if config.depth_norms:
            self["ln_1"] = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
            self["ln_2"] = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if config.depth_biases or config.depth_lora_rank:
            for name, sizes in config.linear_layers.items():
                self[name.replace(".", "_")] = ALGPT2DepthLinear(config, *sizes)

    def added(self, name, inputs, outputs):
        """The outputs of a layer of the block with what this depth adds to them."""
        return self[name](inputs, outputs) if name in self else outputs


class ALGPT2Attention(nn.Module):
    """Causal self-attention with one projection to queries, keys and values; `added` as of `ALGPT2Depth`."""

    def __init__(self, config, bias=True):
        super().__init__()
        self.config = config
        self.head_dim = config.n_embd // config.n_head
        self.scaling = self.head_dim**-0.5
        self.is_causal = True
        self.c_attn = nn.Linear(*config.linear_layers["attn.c_attn"], bias=bias)
        self.c_proj = residual_projection(config, config.n_embd, bias)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states, depth, past_key_values=None, attention_mask=None, added=None, **kwargs):
        batch, length, width = hidden_states.shape
        projected = self.c_attn(hidden_states)
        if added is not None:
            projected = added("attn_c_attn", hidden_states, projected)
        query, key, value = (
            states.view(batch, length, -1, self.head_dim).transpose(1, 2)  # (batch, heads, length, H / heads)
            for states in projected.split(width, dim=-1)
        )
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, depth)  # (batch, heads, past + length, H / heads)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        output, weights = attention(
            # The paged cache of `generate_batch` comes as `cache`, and asks the layer where to look.
            AtDepth(self, depth) if "cache" in kwargs else self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.scaling,
            dropout=self.config.attn_pdrop if self.training else 0.0,
            **kwargs,
        )
        heads = output.reshape(batch, length, width)
        output = self.c_proj(heads)
        if added is not None:
            output = added("attn_c_proj", heads, output)
        return self.resid_dropout(output), weights


class ALGPT2MLP(nn.Module):
    """The feed-forward layer of a block; `added` as of `ALGPT2Depth`."""

    def __init__(self, config, bias=True):
        super().__init__()
        self.c_fc = nn.Linear(*config.linear_layers["mlp.c_fc"], bias=bias)
        self.c_proj = residual_projection(config, config.inner_width, bias)
        self.act = ACT2FN[config.activation_function]
        self.dropout = nn.Dropout(config.resid_pdrop)

    def forward(self, hidden_states, added=None):
        inner = self.c_fc(hidden_states)
        inner = self.act(inner if added is None else added("mlp_c_fc", hidden_states, inner))
        output = self.c_proj(inner)
        return self.dropout(output if added is None else added("mlp_c_proj", inner, output))


class ALGPT2Block(GradientCheckpointingLayer):
    """A pre-normalization GPT-2 block.

    Args:
        config: `ALGPT2Config`.
        depths: list of int. The depths that have parameters of their own.
    """

    def __init__(self, config, depths=()):
        super().__init__()
        has_norms = not (depths and config.depth_norms)
        has_biases = not (depths and config.depth_biases)
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon) if has_norms else None
        self.attn = ALGPT2Attention(config, has_biases)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon) if has_norms else None
        self.mlp = ALGPT2MLP(config, has_biases)
        self.depths = nn.ModuleDict({str(depth): ALGPT2Depth(config) for depth in depths})
        self.residual_multiplier = config.residual_multiplier

    def forward(self, hidden_states, depth, source=None, past_key_values=None, attention_mask=None, **kwargs):
        """The block at a depth, which tells its cache entry apart; `source` is whose own parameters it takes."""
        own = None if source is None else self.depths[str(source)]
        ln_1, ln_2 = (self.ln_1, self.ln_2) if self.ln_1 is not None else (own["ln_1"], own["ln_2"])
        # Not the module itself: hooks that bring weights to a device would move whatever a layer is called with.
        added = None if own is None else own.added
        output, _ = self.attn(ln_1(hidden_states), depth, past_key_values, attention_mask, added=added, **kwargs)
        hidden_states = torch.add(hidden_states, output, alpha=self.residual_multiplier)
        output = self.mlp(ln_2(hidden_states), added=added)
        return torch.add(hidden_states, output, alpha=self.residual_multiplier)


class ALGPT2TiedProjection(nn.Module):
    """The way back of a projection: its matrix, transposed, and a bias of its own."""

    def __init__(self, width):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, hidden_states, matrix):
        return nn.functional.linear(hidden_states, matrix, self.bias)

    @staticmethod
    def matrix_of(projection, width, states):
        """The matrix (E, H) of a projection from `width`, E, on the device of `states` and in their type."""
        if isinstance(projection, nn.Linear) and not projection.weight.is_meta:
            return projection.weight.t()
        # An adapter leaves no single matrix to read, nor does a hook that brings weights to a device as a layer is
        # called; its rows are what unit vectors project to, less the bias.
        units = torch.eye(width, dtype=states.dtype, device=states.device)
        return projection(units) - projection(torch.zeros_like(units[:1]))


class ALGPT2PreTrainedModel(PreTrainedModel):
    """What all ALGPT2 models share: initialization, and what they support."""

    config: ALGPT2Config
    config_class = ALGPT2Config
    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    _no_split_modules = ["ALGPT2Block"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # Of heads that another model has.
    _keys_to_ignore_on_load_unexpected = [r"^(lm_head|sop_classifier)\."]
    _can_record_outputs = {"attentions": OutputRecorder(ALGPT2Attention, index=1)}

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ALGPT2TiedProjection):
            init.zeros_(module.bias)
        if isinstance(module, ALGPT2DepthLinear):
            for zero in (module.bias, module.up):
                if zero is not None:
                    init.zeros_(zero)
            if module.down is not None:
                init.normal_(module.down, mean=0.0, std=module.down.shape[1] ** -0.5)
        if hasattr(module, "initial_std"):
            init.normal_(module.weight, mean=0.0, std=module.initial_std)

    def __setattr__(self, name, value):
        is_adapter = hasattr(value, "base_layer") and not hasattr(value, "trainable_tokens_delta")
        if name in ("wte", "lm_head") and is_adapter and self.config.tie_word_embeddings:
            raise ValueError(
                f"an adapter on {name}: wte and lm_head are one matrix (tie_word_embeddings), so that merging it would "
                "change both; take other target_modules, or train the matrix itself by modules_to_save"
            )
        super().__setattr__(name, value)


class ALGPT2Model(ALGPT2PreTrainedModel):
    """The ALGPT2 transformer without a head.

    Args:
        config: `ALGPT2Config`.

    Example:
        >>> model = ALGPT2Model(ALGPT2Config.from_preset("algpt2-tiny"))
        >>> model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape
        torch.Size([1, 3, 64])
    """

    def __init__(self, config):
        super().__init__(config)
        config.validate_architecture()
        self.wte = nn.Embedding(config.vocab_size, config.embedding_width)
        self.wpe = nn.Embedding(config.n_positions, config.embedding_width)
        self.project_in = self.project_out = None
        if config.is_factorized:
            self.project_in = embedding_projection(config.embedding_width, config.n_embd)
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([ALGPT2Block(config, config.depths_of(block)) for block in range(config.n_block)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if config.tie_projections:
            self.project_out = ALGPT2TiedProjection(config.embedding_width)
        elif config.is_factorized:
            self.project_out = embedding_projection(config.n_embd, config.embedding_width)
        self.gradient_checkpointing = False
        self.post_init()

    def get_input_embeddings(self):
        return self.wte

    def set_input_embeddings(self, value):
        self.wte = value

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """The states that the head computes logits from, for a batch of token sequences.

        Args:
            input_ids: int64 (batch, length).
            past_key_values: `Cache` with one entry per depth.
            attention_mask: (batch, past + length), 1 for tokens and 0 for padding; or a 4-d additive mask.
            token_type_ids: int64 (batch, length); embedded with the token embedding, as in GPT-2.
            position_ids: int64 (batch, length); by default counted on from the cache.
            inputs_embeds: float (batch, length, E), instead of `input_ids`.
            use_cache: bool. Whether to return the keys and values.
            output_hidden_states: bool. Whether to return `hidden_states`; by default as in the configuration.
            **kwargs: `output_attentions`, `return_dict` and those of the attention interface.

        Returns:
            `BaseModelOutputWithPast`. `last_hidden_state` is (batch, length, E), and logits are its products with the
            output embeddings. `hidden_states` are D + 1 tensors (batch, length, H): what enters each depth, and what
            leaves the last one, after `ln_f`.

        Raises:
            ValueError: unless exactly one of `input_ids` and `inputs_embeds` is given; for ids, lengths or masks that
                do not fit the model.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
        if not torch.compiler.is_compiling():
            self._check_inputs(input_ids, inputs_embeds, attention_mask, position_ids, past_length)

        if inputs_embeds is None:
            inputs_embeds = self.wte(input_ids)  # (batch, length, E)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        positions = position_ids
        if positions is None:
            length = inputs_embeds.shape[1]
            positions = (torch.arange(length, device=inputs_embeds.device) + past_length).unsqueeze(0)
        hidden_states = inputs_embeds + self.wpe(positions)
        if token_type_ids is not None:
            hidden_states = hidden_states + self.wte(token_type_ids)
        if self.project_in is not None:
            hidden_states = self.project_in(hidden_states)  # (batch, length, H)
        hidden_states = self.drop(hidden_states)

        whole = attention_mask is None and position_ids is None and past_key_values is None
        # With a mask sdpa has no fast kernel, and whoever compiles gets one from transformers before 5.23.
        if not (whole and self.config._attn_implementation == "sdpa" and torch.compiler.is_dynamo_compiling()):
            attention_mask = create_causal_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                # Only positions that were given: transformers looks in them for the starts of packed texts.
                position_ids=position_ids,
            )
        all_hidden_states = []
        # Early-exit generation lowers n_layer for a while.
        schedule = self.config.layer_schedule[: self.config.n_layer]
        for depth, (block, source) in enumerate(zip(schedule, self.config.depth_sources(), strict=False)):
            all_hidden_states.append(hidden_states)
            hidden_states = self.h[block](
                hidden_states,
                depth,
                source,
                past_key_values=past_key_values,
                attention_mask=attention_mask,
                position_ids=position_ids,
                **kwargs,
            )
        hidden_states = self.ln_f(hidden_states)
        all_hidden_states.append(hidden_states)
        if self.config.tie_projections:
            matrix = self.project_out.matrix_of(self.project_in, self.config.embedding_width, hidden_states)
            hidden_states = self.project_out(hidden_states, matrix)  # (batch, length, E)
        elif self.project_out is not None:
            hidden_states = self.project_out(hidden_states)  # (batch, length, E)

        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return BaseModelOutputWithPast(
            last_hidden_state=hidden_states,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
        )

    def _check_inputs(self, input_ids, inputs_embeds, attention_mask, position_ids, past_length):
        """Raise a ValueError for ids, lengths or masks that do not fit the model; values on a GPU are not read."""
        batch, length = (input_ids if inputs_embeds is None else inputs_embeds).shape[:2]
        if not batch or not length:
            raise ValueError(f"the input is {batch} x {length}; expected at least one sequence of at least one token")
        total, n_positions = past_length + length, self.config.n_positions
        # With padding on the left, positions are fewer than the tokens.
        padded = position_ids is not None and (position_ids.device.type != "cpu" or position_ids.max() < n_positions)
        if total > n_positions and not padded:
            raise ValueError(f"the sequence has {total} tokens, more than n_positions {n_positions}")
        for what, ids, field in (("token ids", input_ids, "vocab_size"), ("positions", position_ids, "n_positions")):
            size = getattr(self.config, field)
            if ids is not None and ids.device.type == "cpu" and not 0 <= ids.min() <= ids.max() < size:
                raise ValueError(f"{what} are {ids.min()} to {ids.max()}; {field} {size} allows 0 to {size - 1}")
        if attention_mask is not None and attention_mask.dim() == 2:
            check_mask(attention_mask, batch, past_length + length)


class ALGPT2LMHeadModel(ALGPT2PreTrainedModel, GenerationMixin):
    """ALGPT2 with a language-model head tied to the token embedding.

    Args:
        config: `ALGPT2Config`.

    Example:
        >>> model = ALGPT2LMHeadModel(ALGPT2Config.from_preset("algpt2-tiny"))
        >>> model(torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3, 2048])
    """

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}

    def __init__(self, config):
        super().__init__(config)
        self.loss_type = "ForCausalLM"
        self.transformer = ALGPT2Model(config)
        self.lm_head = nn.Linear(config.embedding_width, config.vocab_size, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Next-token logits of a batch of token sequences, and their loss.

        Args:
            input_ids, past_key_values, attention_mask, token_type_ids, position_ids, inputs_embeds, use_cache: as in
                `ALGPT2Model.forward`.
            labels: int64 (batch, length), -100 where ignored. They are shifted inside: give `labels=input_ids`.
            logits_to_keep: int or 1-d tensor. The number of last positions, or the positions, to compute logits for;
                0 means all.
            **kwargs: `num_items_in_batch` for the loss, and those of `ALGPT2Model.forward`.

        Returns:
            `CausalLMOutputWithPast`; `logits` are (batch, length, V).
        """
        outputs = self.transformer(
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        loss, logits = self.predict(outputs.last_hidden_state, labels, logits_to_keep, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def predict(self, states, labels=None, logits_to_keep=0, **kwargs):
        """The loss of the labels, if there are any, and the logits (batch, length, V) of states (batch, length, E)."""
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(states[:, kept, :])
        if labels is None:
            return None, logits
        return self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs), logits


# With label smoothing the Trainer has these classes predict the next token, and others the token itself.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[ALGPT2Config.model_type] = ALGPT2LMHeadModel.__name__


@dataclass
class ALGPT2ForPreTrainingOutput(ModelOutput):
    """What `ALGPT2ForPreTraining` computes.

    Args:
        loss: float (). The sum of the losses that labels were given for.
        logits: float (batch, length, V), of the next token.
        sop_logits: float (batch, 2), of the order: 0 as in the text, 1 swapped.
        lm_loss: float (). The language-model loss, if `labels` were given.
        sop_loss: float (). The sentence-order loss, if `sentence_order_label` was given.
        past_key_values: `Cache`, if asked for.
        hidden_states: tuple of float (batch, length, H), if asked for.
        attentions: tuple of float (batch, n_head, length, length), if asked for.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    sop_logits: torch.FloatTensor | None = None
    lm_loss: torch.FloatTensor | None = None
    sop_loss: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class ALGPT2ForPreTraining(ALGPT2LMHeadModel):
    """ALGPT2 with a language-model head, and a head that tells whether two segments are in their order.

    The order is read from the final hidden state of the last token, which has seen both segments.

    Args:
        config: `ALGPT2Config`.

    References:
        Sentence-order prediction: ALBERT (Lan et al., 2020, section 3.1, https://arxiv.org/abs/1909.11942).

    Example:
        >>> model = ALGPT2ForPreTraining(ALGPT2Config.from_preset("algpt2-tiny"))
        >>> ids = torch.tensor([[1, 2, 3]])
        >>> output = model(ids, labels=ids, sentence_order_label=torch.tensor([1]))
        >>> output.logits.shape, output.sop_logits.shape
        (torch.Size([1, 3, 2048]), torch.Size([1, 2]))
    """

    def __init__(self, config):
        super().__init__(config)
        self.sop_classifier = nn.Linear(config.n_embd, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        sentence_order_label: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_sequences_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> ALGPT2ForPreTrainingOutput:
        """Next-token logits and order logits of a batch of token sequences, and their losses.

        Args:
            input_ids, past_key_values, token_type_ids, position_ids, inputs_embeds, use_cache, output_hidden_states,
                logits_to_keep: as in `ALGPT2LMHeadModel.forward`.
            attention_mask: as in `ALGPT2Model.forward`. If it is 2-d, the last token is the last that is not padding.
            labels: int64 (batch, length), -100 where ignored. They are shifted inside: give `labels=input_ids`.
            sentence_order_label: int64 (batch,), 0 for segments in order, 1 for swapped ones, -100 where ignored.
            num_sequences_in_batch: int. The sequences of all parts of an accumulated batch, to divide the summed
                sentence-order loss by; by default the loss is the mean of the sequences given.
            **kwargs: `num_items_in_batch` for the language-model loss, and those of `ALGPT2Model.forward`.

        Returns:
            `ALGPT2ForPreTrainingOutput`.
        """
        outputs, states = states_of(
            self.transformer,
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_hidden_states=output_hidden_states,
            **kwargs,
        )
        lm_loss, logits = self.predict(outputs.last_hidden_state, labels, logits_to_keep, **kwargs)
        sop_logits = self.sop_classifier(last_token(states, attention_mask))
        sop_loss, loss = None, lm_loss
        if sentence_order_label is not None:
            sop_loss = fixed_cross_entropy(sop_logits.float(), sentence_order_label.view(-1), num_sequences_in_batch)
            loss = sop_loss if loss is None else loss + sop_loss
        return ALGPT2ForPreTrainingOutput(
            loss=loss,
            logits=logits,
            sop_logits=sop_logits,
            lm_loss=lm_loss,
            sop_loss=sop_loss,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class ALGPT2ForSequenceClassification(ALGPT2PreTrainedModel):
    """ALGPT2 with a linear head on the final hidden state of the last token, to classify texts, as GPT-2's.

    Args:
        config: `ALGPT2Config` with `num_labels` or `id2label`. Several texts at once need its `pad_token_id`.

    Example:
        >>> model = ALGPT2ForSequenceClassification(ALGPT2Config.from_preset("algpt2-tiny", num_labels=3))
        >>> model(torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3])
    """

    # The loss is the mean over the batch given: Trainer divides it by the parts of an accumulated one.
    accepts_loss_kwargs = False

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = without_projection(ALGPT2Model(config))
        self.score = nn.Linear(config.n_embd, config.num_labels, bias=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> SequenceClassifierOutputWithPast:
        """The logits of the classes of a batch of texts, and their loss.

        Args:
            input_ids, past_key_values, attention_mask, token_type_ids, position_ids, inputs_embeds, use_cache: as in
                `ALGPT2Model.forward`. The last token is the last that is not `pad_token_id`; of embeddings, the last.
            labels: int64 (batch,) of classes; float (batch,) for one label, or (batch, num_labels) of 0 and 1 where
                several may hold; `config.problem_type` says which if it is set.
            **kwargs: those of `ALGPT2Model.forward`.

        Returns:
            `SequenceClassifierOutputWithPast`; `logits` are (batch, num_labels).

        Raises:
            ValueError: for several texts where the configuration has no `pad_token_id`.
        """
        outputs, states = states_of(
            self.transformer,
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        pad_token = self.config.pad_token_id
        if pad_token is None and len(states) > 1:
            raise ValueError("texts of a batch are told from their padding by pad_token_id, which the config lacks")
        is_token = None if pad_token is None or input_ids is None else input_ids != pad_token
        logits = self.score(last_token(states, is_token))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class ALGPT2ForTokenClassification(ALGPT2PreTrainedModel):
    """ALGPT2 with a linear head on the final hidden state of every token, to classify tokens, as GPT-2's.

    Args:
        config: `ALGPT2Config` with `num_labels` or `id2label`.

    Example:
        >>> model = ALGPT2ForTokenClassification(ALGPT2Config.from_preset("algpt2-tiny", num_labels=3))
        >>> model(torch.tensor([[1, 2, 3, 4]])).logits.shape
        torch.Size([1, 4, 3])
    """

    # The loss is the mean over the batch given: Trainer divides it by the parts of an accumulated one.
    accepts_loss_kwargs = False

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.transformer = without_projection(ALGPT2Model(config))
        self.dropout = nn.Dropout(config.resid_pdrop)
        self.classifier = nn.Linear(config.n_embd, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs,
    ) -> TokenClassifierOutput:
        """The logits of the classes of every token, and their loss.

        Args:
            input_ids, past_key_values, attention_mask, token_type_ids, position_ids, inputs_embeds, use_cache: as in
                `ALGPT2Model.forward`.
            labels: int64 (batch, length), -100 where ignored.
            **kwargs: those of `ALGPT2Model.forward`.

        Returns:
            `TokenClassifierOutput`; `logits` are (batch, length, num_labels).
        """
        outputs, states = states_of(
            self.transformer,
            input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.classifier(self.dropout(states))
        loss = None if labels is None else self.loss_function(logits, labels, self.config)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class ALGPT2ForQuestionAnswering(ALGPT2PreTrainedModel):
    """ALGPT2 with a linear head that tells where in a text an answer begins and ends, as GPT-2's.

    Args:
        config: `ALGPT2Config`.

    Example:
        >>> model = ALGPT2ForQuestionAnswering(ALGPT2Config.from_preset("algpt2-tiny"))
        >>> model(torch.tensor([[1, 2, 3, 4]])).start_logits.shape
        torch.Size([1, 4])
    """

    # The loss is the mean over the batch given: Trainer divides it by the parts of an accumulated one.
    accepts_loss_kwargs = False

    def __init__(self, config):
        super().__init__(config)
        self.transformer = without_projection(ALGPT2Model(config))
        self.qa_outputs = nn.Linear(config.n_embd, 2)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs,
    ) -> QuestionAnsweringModelOutput:
        """The logits of where an answer begins and ends, and their loss.

        Args:
            input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds: as in `ALGPT2Model.forward`.
            start_positions, end_positions: int64 (batch,), the first and the last token of the answer.
            **kwargs: those of `ALGPT2Model.forward`.

        Returns:
            `QuestionAnsweringModelOutput`; `start_logits` and `end_logits` are (batch, length).
        """
        outputs, states = states_of(
            self.transformer,
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        start_logits, end_logits = self.qa_outputs(states).unbind(-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


def without_projection(transformer):
    """A transformer for a head that reads the hidden states: `project_out` is for logits of tokens, and not trained.

    Args:
        transformer: `ALGPT2Model`.
    """
    if transformer.project_out is not None:
        transformer.project_out.requires_grad_(False)
    return transformer


def states_of(transformer, input_ids, output_hidden_states=None, **kwargs):
    """What a transformer gives, and the final hidden states (batch, length, H), which are not projected to E.

    Args:
        transformer: `ALGPT2Model`.
        input_ids, output_hidden_states, **kwargs: as in its `forward`.

    Returns:
        tuple of `BaseModelOutputWithPast` and `torch.Tensor`.
    """
    outputs = transformer(input_ids, output_hidden_states=True, **kwargs)
    states = outputs.hidden_states[-1]
    if output_hidden_states is None:
        output_hidden_states = transformer.config.output_hidden_states
    if not output_hidden_states:
        outputs.hidden_states = None
    return outputs, states


def last_token(hidden_states, attention_mask=None):
    """The hidden state of the last token of each sequence that is not padding.

    Args:
        hidden_states: float (batch, length, H).
        attention_mask: (batch, at least length), 0 for padding; anything but a 2-d mask means no padding.

    Returns:
        float (batch, H).
    """
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        return hidden_states[:, -1]
    length = hidden_states.shape[1]
    # With a cache the mask covers earlier tokens too.
    is_token = attention_mask[:, -length:].to(hidden_states.device) != 0
    last = (is_token * torch.arange(length, device=hidden_states.device)).argmax(-1)
    return hidden_states[torch.arange(len(hidden_states), device=hidden_states.device), last]
