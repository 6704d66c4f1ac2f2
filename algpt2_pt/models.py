"""The models of this package: those of modeling_algpt2.py, made to read any checkpoint and to run faster.

What is added stands in `loading`, `loss`, `cache` and `cpu_kernels`, apart from the file that travels with a model.
"""

from transformers import AutoModel, AutoModelForCausalLM, AutoModelForPreTraining

from algpt2 import ALGPT2Config
from algpt2_pt import modeling_algpt2
from algpt2_pt.cache import FastGeneration
from algpt2_pt.loading import AnyCheckpoint
from algpt2_pt.loss import LossInChunks


class ALGPT2Model(AnyCheckpoint, modeling_algpt2.ALGPT2Model):
    __doc__ = modeling_algpt2.ALGPT2Model.__doc__


class ALGPT2LMHeadModel(AnyCheckpoint, FastGeneration, LossInChunks, modeling_algpt2.ALGPT2LMHeadModel):
    __doc__ = modeling_algpt2.ALGPT2LMHeadModel.__doc__


class ALGPT2ForPreTraining(AnyCheckpoint, FastGeneration, LossInChunks, modeling_algpt2.ALGPT2ForPreTraining):
    __doc__ = modeling_algpt2.ALGPT2ForPreTraining.__doc__


def language_model_class(with_sop):
    """The class of a language model, with or without a sentence-order head (bool)."""
    return ALGPT2ForPreTraining if with_sop else ALGPT2LMHeadModel


AutoModel.register(ALGPT2Config, ALGPT2Model, exist_ok=True)
AutoModelForCausalLM.register(ALGPT2Config, ALGPT2LMHeadModel, exist_ok=True)
AutoModelForPreTraining.register(ALGPT2Config, ALGPT2ForPreTraining, exist_ok=True)
