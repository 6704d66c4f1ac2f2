"""PyTorch ALGPT2: GPT-2 whose blocks follow a layer schedule, with factorized embeddings."""

import numpy as np
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from algpt2 import ALGPT2Config
from algpt2.checkpoint import GENERATION_FILE, find_checkpoint, open_checkpoint, read_config
from algpt2.dialects import find_dialect
from algpt2.dialects.algpt2 import PYTORCH
from algpt2.formats import find_weights, read_weights
from algpt2.loss import IGNORED
from algpt2.tokenization import SPECIAL_TOKEN_FIELDS, stored_special_token_ids
from algpt2.weights import check_weights
from algpt2_pt.generation import ALGPT2GenerationMixin
from algpt2_pt.layers import ALGPT2Attention, ALGPT2Block, ALGPT2TiedProjection, embedding_projection
from algpt2_pt.loss import linear_cross_entropy
from algpt2_pt.products import linear


class ALGPT2PreTrainedModel(PreTrainedModel):
    """What all ALGPT2 models of transformers share: initialization, loading, and what they support."""

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
    _can_record_outputs = {
        "hidden_states": ALGPT2Block,
        "attentions": OutputRecorder(ALGPT2Attention, index=1),
    }

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, ALGPT2TiedProjection):
            init.zeros_(module.bias)
        if hasattr(module, "initial_std"):
            init.normal_(module.weight, mean=0.0, std=module.initial_std)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """A model with the weights of a checkpoint, as `transformers.PreTrainedModel.from_pretrained`.

        Besides ALGPT2's own checkpoints it reads those of `algpt2.dialects.DIALECTS`, Keras's weights among them.

        Args:
            pretrained_model_name_or_path: str or path. A directory, or the id of a hub repository.
            *args, config, **kwargs: as in transformers.

        Raises:
            algpt2.errors.InputError: if a checkpoint in another dialect cannot be read.

        Example:
            >>> model = ALGPT2LMHeadModel.from_pretrained("gpt2")  # doctest: +SKIP
        """
        name = pretrained_model_name_or_path
        if name is None or config is not None or not kwargs.keys().isdisjoint(("subfolder", "variant", "gguf_file")):
            return super().from_pretrained(name, *args, config=config, **kwargs)
        hub_options = {key: kwargs[key] for key in ("revision", "token", "cache_dir") if key in kwargs}
        stored, _ = ALGPT2Config.get_config_dict(name, **hub_options)
        directory = find_checkpoint(name, **hub_options)
        if is_own_checkpoint(directory, stored):
            return super().from_pretrained(name, *args, **kwargs)
        overrides = {key: kwargs.pop(key) for key in list(kwargs) if key in vars(ALGPT2Config()) and key != "dtype"}
        checkpoint = open_checkpoint(directory)
        check_weights(checkpoint.config, checkpoint.weights, source=checkpoint.path)
        config = read_config(directory, **{**stored_special_token_ids(directory), **overrides})
        state_dict = {name: to_torch(np.asarray(tensor)) for name, tensor in checkpoint.weights.items()}
        loaded = super().from_pretrained(None, *args, config=config, state_dict=state_dict, **kwargs)
        if (directory / GENERATION_FILE).is_file():
            # With `output_loading_info` the model comes first.
            model = loaded[0] if isinstance(loaded, tuple) else loaded
            tokens = {name: getattr(config, name) for name in SPECIAL_TOKEN_FIELDS}
            model.generation_config = GenerationConfig.from_pretrained(directory, **tokens)
        return loaded


def is_own_checkpoint(directory, stored):
    """Whether transformers itself can load a checkpoint.

    Args:
        directory: `Path`.
        stored: dict, the content of its config.json.
    """
    if stored.get("model_type") not in (None, ALGPT2Config.model_type):
        return False
    weights = find_weights(directory)
    # Only ALGPT2 itself writes a schedule; others with its model_type have tensors of other names.
    if not weights or (weights[0][0].naming == "pytorch" and stored.get("layer_schedule")):
        return True
    kind, path = weights[0]
    return find_dialect(kind.naming, stored, read_weights(kind, path))[0] is PYTORCH


class ALGPT2Model(ALGPT2PreTrainedModel):
    """The ALGPT2 transformer without a head.

    Args:
        config: `ALGPT2Config`.

    Example:
        >>> model = ALGPT2Model(ALGPT2Config.from_preset("algpt2-tiny"))
        >>> model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape
        torch.Size([1, 3, 128])
    """

    def __init__(self, config):
        super().__init__(config)
        config.validate_architecture()
        self.wte = nn.Embedding(config.vocab_size, config.embedding_width)
        self.wpe = nn.Embedding(config.n_positions, config.embedding_width)
        self.project_in = embedding_projection(config.embedding_width, config.n_embd) if config.is_factorized else None
        self.drop = nn.Dropout(config.embd_pdrop)
        self.h = nn.ModuleList([ALGPT2Block(config) for _ in range(config.n_block)])
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
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
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states of a batch of token sequences.

        Args:
            input_ids: int64 (batch, length).
            past_key_values: `Cache` with one entry per depth.
            attention_mask: (batch, past + length), 1 for tokens and 0 for padding; or a 4-d additive mask.
            token_type_ids: int64 (batch, length); embedded with the token embedding, as in GPT-2.
            position_ids: int64 (batch, length); by default counted on from the cache.
            inputs_embeds: float (batch, length, E), instead of `input_ids`.
            use_cache: bool. Whether to return the keys and values.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict` and those of the attention interface.

        Returns:
            `BaseModelOutputWithPast`; `hidden_states` are (batch, length, H), one per depth and the input of the first.

        Raises:
            ValueError: unless exactly one of `input_ids` and `inputs_embeds` is given, or for too long a sequence.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.wte(input_ids)
        length = inputs_embeds.shape[1]
        if length > self.config.n_positions:
            raise ValueError(f"the sequence has {length} tokens, more than n_positions {self.config.n_positions}")
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = (torch.arange(length, device=inputs_embeds.device) + past_length).unsqueeze(0)

        hidden_states = inputs_embeds + self.wpe(position_ids)
        if token_type_ids is not None:
            hidden_states = hidden_states + self.wte(token_type_ids)
        if self.project_in is not None:
            hidden_states = linear(self.project_in, hidden_states)
        hidden_states = self.drop(hidden_states)

        attention_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        # Early-exit generation lowers n_layer for a while.
        for depth, block in enumerate(self.config.layer_schedule[: self.config.n_layer]):
            hidden_states = self.h[block](
                hidden_states,
                depth,
                past_key_values=past_key_values,
                attention_mask=attention_mask,
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutputWithPast(
            last_hidden_state=self.ln_f(hidden_states),
            past_key_values=past_key_values if use_cache else None,
        )


class ALGPT2LMHeadModel(ALGPT2PreTrainedModel, ALGPT2GenerationMixin):
    """ALGPT2 with a language-model head tied to the token embedding.

    Args:
        config: `ALGPT2Config`.

    Example:
        >>> model = ALGPT2LMHeadModel(ALGPT2Config.from_preset("algpt2-tiny"))
        >>> model(torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3, 2048])
    """

    _tied_weights_keys = {"lm_head.weight": "transformer.wte.weight"}
    _keys_to_ignore_on_load_unexpected = [r"^sop_classifier\."]

    def __init__(self, config):
        super().__init__(config)
        self.loss_type = "ForCausalLM"
        self.transformer = ALGPT2Model(config)
        self.project_out = None
        if config.tie_projections:
            self.project_out = ALGPT2TiedProjection(config.embedding_width)
        elif config.is_factorized:
            self.project_out = embedding_projection(config.n_embd, config.embedding_width)
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
        skip_logits: bool = False,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Next-token logits of a batch of token sequences, and their loss.

        Args:
            input_ids, past_key_values, attention_mask, token_type_ids, position_ids, inputs_embeds, use_cache: as in
                `ALGPT2Model.forward`.
            labels: int64 (batch, length), -100 where ignored. They are shifted inside: give `labels=input_ids`.
            logits_to_keep: int or 1-d tensor. The number of last positions, or the positions, to compute logits for;
                0 means all.
            skip_logits: bool. Whether to compute the loss of `labels` in chunks, which takes much less memory than the
                logits (batch, length, V), and to return no logits.
            **kwargs: `num_items_in_batch` for the loss, and those of `ALGPT2Model.forward`.

        Returns:
            `CausalLMOutputWithPast`; `logits` are (batch, length, V), or `None` with `skip_logits`.
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
        loss, logits = self.compute_loss(outputs.last_hidden_state, labels, logits_to_keep, skip_logits, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def compute_loss(self, hidden_states, labels=None, logits_to_keep=0, skip_logits=False, **kwargs):
        """The loss and the logits of the final hidden states, float (batch, length, H); `None` where not asked for."""
        if labels is not None and skip_logits:
            return self._chunked_loss(hidden_states, labels, **kwargs), None
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = linear(self.lm_head, self._project_out(hidden_states[:, kept, :]))
        if labels is None:
            return None, logits
        return self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs), logits

    def _chunked_loss(self, hidden_states, labels, num_items_in_batch=None, **kwargs):
        states = self._project_out(hidden_states[:, :-1]).flatten(0, 1)
        labels = labels[:, 1:].flatten().to(states.device)
        loss = linear_cross_entropy(states, self.lm_head.weight, labels)
        return loss / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)

    def _project_out(self, hidden_states):
        if self.config.tie_projections:
            return self.project_out(hidden_states, self.transformer.project_in.weight)
        return hidden_states if self.project_out is None else linear(self.project_out, hidden_states)


def to_torch(array):
    """A tensor with a copy of a numpy array, which may be bfloat16."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


AutoModel.register(ALGPT2Config, ALGPT2Model, exist_ok=True)
AutoModelForCausalLM.register(ALGPT2Config, ALGPT2LMHeadModel, exist_ok=True)
