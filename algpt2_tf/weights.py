"""Canonical weights in and out of a Keras model."""

import logging

import numpy as np

from algpt2.checkpoints.weight_maps.own import KERAS_LINEAR_LAYERS
from algpt2.checkpoints.weights import check_weights, depth_layer
from algpt2.errors import InputError

logger = logging.getLogger(__name__)
# The layers that a language model does without, in words.
HEADS = {"sop_classifier": "sentence-order head", "score": "classifier"}


def canonical_weights(model):
    """The weights of a model by their canonical names and layout; LoRA updates are merged.

    Args:
        model: `algpt2_tf.task.TFALGPT2Task`.

    Returns:
        dict of str to numpy array.
    """
    weights = {}
    for name, (variable, transposed) in canonical_variables(model).items():
        array = np.asarray(variable)
        weights[name] = array.T if transposed else array
    return weights


def assign_weights(model, weights, source="weights"):
    """Set all weights of a model; those of another head are left out, or stay new, where only one side has it.

    Args:
        model: `algpt2_tf.task.TFALGPT2Task`.
        weights: dict of str to numpy array or `algpt2.checkpoints.formats.lazy_tensor.LazyTensor`, canonical.
        source: str or path. Names the weights in an error.

    Raises:
        algpt2.errors.InputError: if the weights are not exactly those of the model; it stays as it was.
    """
    check_weights(model.config, weights, source)
    variables = canonical_variables(model)
    if "lm_head.weight" in variables.keys() - weights.keys():
        raise InputError(f"{source}: holds no lm_head, only a classifier; give the checkpoint of a language model")
    for name in variables.keys() & weights.keys():
        variable, transposed = variables[name]
        array = np.asarray(weights[name])
        variable.assign(array.T if transposed else array)
    for head in {name.partition(".")[0] for name in variables.keys() - weights.keys()}:
        logger.warning("%s: holds no %s; %s starts new and wants training", source, HEADS[head], head)


def canonical_variables(model):
    """The variable behind every canonical weight, and whether it holds the weight transposed.

    Args:
        model: `algpt2_tf.task.TFALGPT2Task`.

    Returns:
        dict of str to tuple of (variable, bool).
    """
    backbone = model.backbone
    variables = {
        "transformer.wte.weight": (backbone.token_embedding.embeddings, False),
        "transformer.wpe.weight": (backbone.position_embedding.position_embeddings, False),
    }
    if backbone.project_in is not None:
        variables |= _dense("transformer.project_in", backbone.project_in)
    for index, block in enumerate(backbone.transformer_layers):
        prefix = f"transformer.h.{index}"
        variables |= _norms(prefix, block)
        for name, linear in KERAS_LINEAR_LAYERS.items():
            variables |= _dense(f"{prefix}.{linear}", getattr(block, name))
        for depth, own in zip(block.own_depths, block.depths, strict=True):
            variables |= _own(f"{prefix}.depths.{depth}", own)
    variables |= _norm("transformer.ln_f", backbone.layer_norm)
    if model.config.tie_projections:
        variables["transformer.project_out.bias"] = (backbone.project_in.reverse_bias, False)
    elif model.config.is_factorized:
        variables |= _dense("transformer.project_out", backbone.project_out)
    if getattr(model, "classification_head", None) is not None:
        variables["score.weight"] = (model.classification_head.kernel, True)
    elif not model.config.tie_word_embeddings:
        variables["lm_head.weight"] = (backbone.token_embedding.reverse_embeddings, True)
    if getattr(model, "sop_classifier", None) is not None:
        variables |= _dense("sop_classifier", model.sop_classifier)
    return variables


def _own(prefix, own):
    variables = _norms(prefix, own)
    for name, linear in KERAS_LINEAR_LAYERS.items():
        layer, canonical = getattr(own, name, None), depth_layer(f"{prefix}.", linear)
        if layer is not None and layer.down is not None:
            variables[f"{canonical}.down"] = (layer.down.kernel, True)
            variables[f"{canonical}.up"] = (layer.up.kernel, True)
        if layer is not None and layer.bias is not None:
            variables[f"{canonical}.bias"] = (layer.bias, False)
    return variables


def _dense(name, layer):
    variables = {f"{name}.weight": (layer.kernel, True)}
    return variables if layer.bias is None else variables | {f"{name}.bias": (layer.bias, False)}


def _norms(prefix, layer):
    """The layer normalizations of a block or of a depth, whichever has them."""
    if not hasattr(layer, "ln_1"):
        return {}
    return _norm(f"{prefix}.ln_1", layer.ln_1) | _norm(f"{prefix}.ln_2", layer.ln_2)


def _norm(name, layer):
    return {f"{name}.weight": (layer.gamma, False), f"{name}.bias": (layer.beta, False)}
