"""Canonical weights in and out of a Keras model."""

import logging
import math
import os

import h5py
import keras
import numpy as np

from algpt2.errors import InputError
from algpt2.weights import DTYPES, check_weights

logger = logging.getLogger(__name__)


# What groups and headers take besides the arrays, and more.
HDF5_OVERHEAD = 1 << 20


def save_keras_weights(model, path):
    """Write the weights of a model, without the state of training, as Keras's `.weights.h5`.

    Args:
        model: `TFALGPT2LMHeadModel`.
        path: path that ends in `.weights.h5`.
    """
    _reserve(path, sum(variable.value.dtype.size * math.prod(variable.shape) for variable in model.variables))
    keras.saving.save_weights(model, path, objects_to_skip=_training_state(model))


def _reserve(path, size):
    # HDF5 crashes the process if the disk is full as it closes a file, so that the space is asked for before.
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size + HDF5_OVERHEAD)
    os.remove(path)


def load_keras_weights(model, path):
    """Set the weights of a model from a `.weights.h5` file; a sentence-order head that it does not hold stays new.

    Args:
        model: `TFALGPT2LMHeadModel`.
        path: path that ends in `.weights.h5`.

    Raises:
        algpt2.errors.InputError: if the file is damaged or holds other weights than the model's.
    """
    head = getattr(model, "sop_classifier", None)
    try:
        head_is_new = head is not None and not holds_sop_classifier(path)
        skipped = [*_training_state(model), *([head] if head_is_new else [])]
        keras.saving.load_weights(model, path, objects_to_skip=skipped)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path}: damaged, or of another configuration than config.json ({error})") from error
    check_weights(model.config, canonical_weights(model), source=path)
    if head_is_new:
        _warn_of_new_head(path)


def holds_sop_classifier(path):
    """Whether a `.weights.h5` file holds a sentence-order head.

    Args:
        path: path of a readable file.
    """
    with h5py.File(path) as file:
        return "layers/sentence_order_head" in file


def stored_dtype(path):
    """The dtype of the weights in a `.weights.h5` file.

    Args:
        path: path.

    Returns:
        str, such as `"float32"`.

    Raises:
        algpt2.errors.InputError: if the file is damaged or holds no weights.
    """
    dtypes = set()

    def visit(_, item):
        if isinstance(item, h5py.Dataset):
            # HDF5 does not know bfloat16, so Keras marks it.
            dtypes.add(str(item.attrs.get("dtype", item.dtype)))

    try:
        with h5py.File(path) as file:
            file.visititems(visit)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error})") from error
    if len(dtypes) != 1 or not dtypes <= DTYPES.keys():
        raise InputError(f"{path}: expected weights of one float dtype, found {', '.join(sorted(dtypes)) or 'none'}")
    return dtypes.pop()


def _warn_of_new_head(source):
    logger.warning("%s: holds no sentence-order head; sop_classifier starts new and wants training", source)


def _training_state(model):
    # The random state of dropout is there only if its rate is not 0, so files with it would fit only one rate.
    seeds = [layer.seed_generator for layer in model._flatten_layers() if getattr(layer, "seed_generator", None)]
    return [*seeds, *model.metrics, *([model.optimizer] if model.optimizer else [])]


def canonical_weights(model):
    """The weights of a model by their canonical names and layout; LoRA updates are merged.

    Args:
        model: `TFALGPT2LMHeadModel`.

    Returns:
        dict of str to numpy array.
    """
    weights = {}
    for name, (variable, transposed) in canonical_variables(model).items():
        array = np.asarray(variable)
        weights[name] = array.T if transposed else array
    return weights


def assign_weights(model, weights, source="weights"):
    """Set all weights of a model; a sentence-order head is left out, or stays new, where only one side has it.

    Args:
        model: `TFALGPT2LMHeadModel`.
        weights: dict of str to numpy array, canonical.
        source: str. Names the weights in an error.

    Raises:
        algpt2.errors.InputError: if the weights are not exactly those of the model; it stays as it was.
    """
    check_weights(model.config, weights, source)
    variables = canonical_variables(model)
    for name in variables.keys() & weights.keys():
        variable, transposed = variables[name]
        variable.assign(weights[name].T if transposed else weights[name])
    if variables.keys() - weights.keys():
        _warn_of_new_head(source)


def canonical_variables(model):
    """The variable behind every canonical weight, and whether it holds the weight transposed.

    Args:
        model: `TFALGPT2LMHeadModel`.

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
    if getattr(model, "sop_classifier", None) is not None:
        variables |= _dense("sop_classifier", model.sop_classifier)
    return variables


def _dense(name, layer):
    return {f"{name}.weight": (layer.kernel, True), f"{name}.bias": (layer.bias, False)}


def _norm(name, layer):
    return {f"{name}.weight": (layer.gamma, False), f"{name}.bias": (layer.beta, False)}
