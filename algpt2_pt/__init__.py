"""ALGPT2 in PyTorch, as a model of transformers; importing it registers the Auto classes."""

from algpt2_pt.modeling_algpt2 import ALGPT2LMHeadModel, ALGPT2Model, ALGPT2PreTrainedModel
from algpt2_pt.pretraining import ALGPT2ForPreTraining

__all__ = ["ALGPT2ForPreTraining", "ALGPT2LMHeadModel", "ALGPT2Model", "ALGPT2PreTrainedModel"]
