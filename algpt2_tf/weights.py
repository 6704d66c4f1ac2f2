"""Canonical weights in and out of a Keras model."""

import numpy as np

from algpt2.weights import check_weights


def canonical_weights(model):
    """The weights of a model by their canonical names and layout; LoRA updates are merged.

    Args:
        model: `TFALGPT2LMHeadModel`.

    Returns:
        dict of str to numpy array.
    """
    weights = {}
    for name, (variable, transposed) in _variables(model).items():
        array = np.asarray(variable)
        weights[name] = array.T if transposed else array
    return weights


def assign_weights(model, weights, source="weights"):
    """Set all weights of a model.

    Args:
        model: `TFALGPT2LMHeadModel`.
        weights: dict of str to numpy array, canonical.
        source: str. Names the weights in an error.

    Raises:
        algpt2.errors.InputError: if the weights are not exactly those of the model; it stays as it was.
    """
    check_weights(model.config, weights, source)
    for name, (variable, transposed) in _variables(model).items():
        variable.assign(weights[name].T if transposed else weights[name])


def _variables(model):
    backbone = model.backbone
    variables = {
        "transformer.wte.weight": (backbone.token_embedding.embeddings, False),
        "transformer.wpe.weight": (backbone.position_embedding.position_embeddings, False),
    }
    if backbone.project_in is not None:
        variables |= _dense("transformer.project_in", backbone.project_in)
    for index, block in enumerate(backbone.transformer_layers):
        prefix = f"transformer.h.{index}"
        variables |= _norm(f"{prefix}.ln_1", block.ln_1)
        variables |= _dense(f"{prefix}.attn.c_attn", block.c_attn)
        variables |= _dense(f"{prefix}.attn.c_proj", block.attn_c_proj)
        variables |= _norm(f"{prefix}.ln_2", block.ln_2)
        variables |= _dense(f"{prefix}.mlp.c_fc", block.c_fc)
        variables |= _dense(f"{prefix}.mlp.c_proj", block.mlp_c_proj)
    variables |= _norm("transformer.ln_f", backbone.layer_norm)
    if model.config.tie_projections:
        variables["project_out.bias"] = (backbone.project_in.reverse_bias, False)
    elif model.config.is_factorized:
        variables |= _dense("project_out", model.project_out)
    if not model.config.tie_word_embeddings:
        variables["lm_head.weight"] = (backbone.token_embedding.reverse_embeddings, True)
    return variables


def _dense(name, layer):
    return {f"{name}.weight": (layer.kernel, True), f"{name}.bias": (layer.bias, False)}


def _norm(name, layer):
    return {f"{name}.weight": (layer.gamma, False), f"{name}.bias": (layer.beta, False)}
