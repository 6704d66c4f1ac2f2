"""ALGPT2 with two heads for pretraining in PyTorch: the language model and sentence-order prediction."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModelForPreTraining
from transformers.cache_utils import Cache
from transformers.loss.loss_utils import fixed_cross_entropy
from transformers.utils import ModelOutput, can_return_tuple

from algpt2 import ALGPT2Config
from algpt2_pt.modeling_algpt2 import ALGPT2LMHeadModel


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
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool = False,
        num_sequences_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> ALGPT2ForPreTrainingOutput:
        """Next-token logits and order logits of a batch of token sequences, and their losses.

        Args:
            input_ids, past_key_values, token_type_ids, position_ids, inputs_embeds, use_cache, logits_to_keep,
                skip_logits: as in `ALGPT2LMHeadModel.forward`.
            attention_mask: as in `ALGPT2Model.forward`. Where it is 2-d, left or right padding is not the last token.
            labels: int64 (batch, length), -100 where ignored. They are shifted inside: give `labels=input_ids`.
            sentence_order_label: int64 (batch,), 0 for segments in order, 1 for swapped ones, -100 where ignored.
            num_sequences_in_batch: int. The sequences of all parts of an accumulated batch, to divide the summed
                sentence-order loss by; by default the loss is the mean of the sequences given.
            **kwargs: `num_items_in_batch` for the language-model loss, and those of `ALGPT2Model.forward`.

        Returns:
            `ALGPT2ForPreTrainingOutput`.
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
        lm_loss, logits = self.compute_loss(outputs.last_hidden_state, labels, logits_to_keep, skip_logits, **kwargs)
        sop_logits = self.sop_classifier(last_token(outputs.last_hidden_state, attention_mask))
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


AutoModelForPreTraining.register(ALGPT2Config, ALGPT2ForPreTraining, exist_ok=True)
