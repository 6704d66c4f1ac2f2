"""Weights between numpy and PyTorch."""

import torch

from algpt2.checkpoints.weight_maps.weight_map import WRAPPERS


def to_torch(array):
    """A tensor that shares the memory of a numpy array, which may be bfloat16."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view("int16")).view(torch.bfloat16)
    return torch.from_numpy(array)


def without_tied(model, state_dict):
    """A state dict by the names of the model, without tied tensors.

    Once gathered from shards, no shared memory tells which tensors are tied; and what `torch.compile` wraps has longer
    names.

    Args:
        model: `ALGPT2LMHeadModel`.
        state_dict: dict of str to tensor, or `None`.
    """
    if not state_dict:
        return state_dict
    tied = (model.config.tie_word_embeddings and model._tied_weights_keys) or ()
    tensors = {WRAPPERS.sub("", name): tensor for name, tensor in state_dict.items()}
    return {name: tensor for name, tensor in tensors.items() if name not in tied}
