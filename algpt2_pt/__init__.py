"""ALGPT2 in PyTorch, as models of transformers; importing it registers the Auto classes."""

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
