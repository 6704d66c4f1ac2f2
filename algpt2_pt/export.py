"""PyTorch models for deployment: an ONNX file."""

import contextlib
import logging
import warnings

import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from algpt2_pt.modeling_algpt2 import ALGPT2LMHeadModel

INPUT_NAMES = ("input_ids", "attention_mask")


class LanguageModelLogits(nn.Module):
    """The logits of a model alone, computed from all tokens at once.

    Args:
        model: `ALGPT2LMHeadModel` or `ALGPT2ForPreTraining`.
    """

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        # Called on the class, so that a model for pretraining leaves out its sentence-order head.
        return ALGPT2LMHeadModel.forward(self.model, input_ids, attention_mask=attention_mask, use_cache=False).logits


def export_onnx(model, path):
    """Write an ONNX file for any batch and length, which onnxruntime runs.

    Its inputs are `input_ids` and `attention_mask`, int64 (batch, length), 0 for padding; its output is `logits`,
    float (batch, length, V).

    Args:
        model: `ALGPT2LMHeadModel` in evaluation mode, of two positions or more; of an `ALGPT2ForPreTraining` the
            language model.
        path: path. The file holds the weights too, so that it is limited to 2 GB.

    Example:
        >>> model = ALGPT2LMHeadModel(ALGPT2Config.from_preset("algpt2-tiny")).eval()
        >>> export_onnx(model, "model.onnx")
    """
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=model.config.n_positions)}
    # More than one token: attention of a single one is not causal, and the exporter would keep that for all lengths.
    # Two tensors: the exporter would make one input of the same tensor given twice.
    shape = (2, min(3, model.config.n_positions))
    ids, mask = torch.ones(shape, dtype=torch.long), torch.ones(shape, dtype=torch.long)
    with _without_warnings():
        program = torch.onnx.export(
            LanguageModelLogits(model).train(model.training),
            (ids, mask),
            dynamo=True,
            verbose=False,
            input_names=INPUT_NAMES,
            output_names=["logits"],
            dynamic_shapes=(axes, axes),
        )
    # Among them are the paths of this machine's source files.
    ClearMetadataAndDocStringPass()(program.model)
    program.save(path, external_data=False)


@contextlib.contextmanager
def _without_warnings():
    """Without the exporter's notes on torchvision, on its own deprecations and on axes that have the same name."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
