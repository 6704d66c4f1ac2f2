"""The models of this package: those of modeling_algpt2.py, made to read any checkpoint and to run faster.

What is added stands in `loading`, `loss`, `cache` and `cpu_kernels`, apart from the file that travels with a model.
"""

import transformers

from algpt2 import ALGPT2Config
from algpt2.configuration import AUTO_MAP
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


class ALGPT2ForSequenceClassification(AnyCheckpoint, modeling_algpt2.ALGPT2ForSequenceClassification):
    __doc__ = modeling_algpt2.ALGPT2ForSequenceClassification.__doc__


class ALGPT2ForTokenClassification(AnyCheckpoint, modeling_algpt2.ALGPT2ForTokenClassification):
    __doc__ = modeling_algpt2.ALGPT2ForTokenClassification.__doc__


class ALGPT2ForQuestionAnswering(AnyCheckpoint, modeling_algpt2.ALGPT2ForQuestionAnswering):
    __doc__ = modeling_algpt2.ALGPT2ForQuestionAnswering.__doc__


def language_model_class(with_sop):
    """The class of a language model, with or without a sentence-order head (bool)."""
    return ALGPT2ForPreTraining if with_sop else ALGPT2LMHeadModel


for auto_class, place in AUTO_MAP.items():
    if auto_class != "AutoConfig":
        getattr(transformers, auto_class).register(ALGPT2Config, globals()[place.rpartition(".")[2]], exist_ok=True)
