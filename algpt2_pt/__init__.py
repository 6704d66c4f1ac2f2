"""ALGPT2 in PyTorch, as models of transformers; importing it registers the Auto classes."""

from typing import TYPE_CHECKING

from algpt2.imports.lazy import lazy_names, register_with

if TYPE_CHECKING:
    from algpt2_pt.models import (
        ALGPT2ForPreTraining,
        ALGPT2ForQuestionAnswering,
        ALGPT2ForSequenceClassification,
        ALGPT2ForTokenClassification,
        ALGPT2LMHeadModel,
        ALGPT2Model,
    )

__all__ = [
    "ALGPT2ForPreTraining",
    "ALGPT2ForQuestionAnswering",
    "ALGPT2ForSequenceClassification",
    "ALGPT2ForTokenClassification",
    "ALGPT2LMHeadModel",
    "ALGPT2Model",
]

__getattr__, __dir__ = lazy_names(__name__, {"algpt2_pt.models": tuple(__all__)})

register_with(("transformers.models.auto.modeling_auto",), __name__, "algpt2_pt.models")
register_with(("peft",), __name__, "algpt2_pt.adapters")
