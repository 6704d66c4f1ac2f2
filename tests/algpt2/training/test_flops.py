"""The operations of training, against those that PyTorch counts."""

import pytest
import torch
from models import pytorch_model, random_batch, random_weights, tiny_config
from torch.utils.flop_counter import FlopCounterMode

from algpt2.training.flops import training_flops

CONFIGS = {
    "factorized": tiny_config(),
    "not factorized": tiny_config(embedding_size=None, n_inner=40),
    "relaxed": tiny_config(depth_norms=True, depth_lora_rank=3),
    "with a block of its own": tiny_config(n_layer=3, layer_schedule=[0, 1, 1], depth_lora_rank=5),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_they_are_those_that_pytorch_counts(name):
    config = CONFIGS[name]
    model = pytorch_model(config, random_weights(config, "float32"))
    model.set_attn_implementation("eager")
    ids, _ = random_batch(config, padded=False)
    with FlopCounterMode(display=False) as counter:
        model(torch.tensor(ids)).logits.sum().backward()
    assert counter.get_total_flops() == training_flops(config, ids.shape[1]) * ids.size
