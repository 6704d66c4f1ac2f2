"""The PyTorch models that several modules test."""

import pytest
import torch
from models import pytorch_model, random_batch, random_weights, tiny_config


@pytest.fixture(params=["shared", "cycle", "unfactorized", "tied_projections"])
def model(request):
    config = {
        "shared": tiny_config(layer_schedule=[0, 0, 0]),
        "cycle": tiny_config(layer_schedule=[0, 1, 0]),
        "unfactorized": tiny_config(embedding_size=None),
        "tied_projections": tiny_config(tie_projections=True),
    }[request.param]
    return pytorch_model(config, random_weights(config, "float64"))


@pytest.fixture
def batch(model):
    ids, mask = random_batch(model.config)
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
