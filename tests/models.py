"""Tiny configurations and the same random weights in both frameworks."""

import numpy as np
import torch
from safetensors.numpy import save_file

from algpt2 import ALGPT2Config, layer_schedule
from algpt2.checkpoints.checkpoint import open_checkpoint
from algpt2.checkpoints.weights import head_shapes, weight_shapes
from algpt2.configuration import ACTIVATIONS
from algpt2_pt import ALGPT2ForPreTraining, ALGPT2LMHeadModel
from algpt2_pt.weights import to_torch
from algpt2_tf import TFALGPT2Backbone, TFALGPT2ForPreTraining, TFALGPT2LMHeadModel
from algpt2_tf.weights import assign_weights

PATTERNS = ("full", "none", "sequence:2", "cycle:2", "cycle_rev:3", "sandwich")


def tiny_config(**overrides):
    """A configuration small enough for unit tests, without dropout."""
    values = {
        "vocab_size": 97,
        "n_positions": 80,
        "n_embd": 24,
        "n_head": 3,
        "embedding_size": 10,
        "layer_schedule": [0, 0, 1],
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    }
    return ALGPT2Config(**{**values, **overrides})


# All that a depth of a shared block may have of its own.
DEPTHS = {"depth_norms": True, "depth_biases": True, "depth_lora_rank": 3, "residual_multiplier": 0.5}
CONFIGS = {
    "shared": tiny_config(layer_schedule=[0, 0, 0], attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1),
    "cycle": tiny_config(layer_schedule=[0, 1, 0], **DEPTHS),
    "unfactorized": tiny_config(embedding_size=None, layer_schedule=[0, 1]),
    "tied_projections": tiny_config(tie_projections=True, layer_schedule=[0, 0]),
}


def random_config(seed):
    """A configuration drawn at random: pattern, factorization, tying, freedom of depths, n_inner and activation."""
    draw = np.random.default_rng(seed)
    factorized = draw.random() < 0.7
    n_layer = int(draw.integers(3, 6))
    return tiny_config(
        n_head=int(draw.choice([1, 2, 4])),
        n_embd=16,
        embedding_size=int(draw.integers(4, 13)) if factorized else None,
        tie_projections=bool(factorized and draw.random() < 0.5),
        tie_word_embeddings=bool(draw.random() < 0.8),
        n_inner=int(draw.integers(8, 40)) if draw.random() < 0.5 else None,
        # Every pattern and activation comes up within the first seeds.
        layer_schedule=layer_schedule(PATTERNS[seed % len(PATTERNS)], n_layer),
        activation_function=ACTIVATIONS[seed % len(ACTIVATIONS)],
        depth_norms=bool(draw.random() < 0.5),
        depth_biases=bool(draw.random() < 0.5),
        depth_lora_rank=int(draw.choice([0, 1, 5])),
        residual_multiplier=float(draw.choice([1.0, 0.7])),
    )


def random_weights(config, dtype="float64", seed=0):
    """Canonical weights large enough that every one of them shows in the logits."""
    draw = np.random.default_rng(seed)

    def array(name, shape):
        # Strong positions keep greedy generation from repeating one token.
        scale = 2.0 if "wpe" in name else 0.3
        mean = 1.0 if ".ln_" in name and name.endswith("weight") else 0.0
        return draw.normal(mean, scale, size=shape).astype(dtype)

    return {name: array(name, shape) for name, shape in weight_shapes(config).items()}


def save_checkpoint(directory, config=None, weights=None, tokenizer=None, dtype="float32"):
    """Write a checkpoint as transformers would, with random weights unless others are given.

    Returns:
        The directory.
    """
    config = config or tiny_config()
    weights = random_weights(config, dtype) if weights is None else weights
    config.dtype = next(iter(weights.values())).dtype.name
    config.save_pretrained(directory)
    tensors = {name: np.ascontiguousarray(array) for name, array in weights.items()}
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    if tokenizer:
        tokenizer.save_pretrained(directory)
    return directory


def read_checkpoint(directory, framework="pytorch"):
    """The configuration and the canonical weights of a directory, checked.

    Returns:
        tuple of (`ALGPT2Config`, dict of str to numpy array).
    """
    checkpoint = open_checkpoint(directory, framework)
    return checkpoint.config, checkpoint.read_weights()


def both_models(config, dtype="float64", seed=0):
    """The same random weights in TensorFlow and in PyTorch.

    Returns:
        tuple of (`TFALGPT2LMHeadModel`, `ALGPT2LMHeadModel` in evaluation mode).
    """
    weights = random_weights(config, dtype, seed)
    tensorflow = TFALGPT2LMHeadModel(TFALGPT2Backbone(config, dtype=dtype))
    assign_weights(tensorflow, weights)
    return tensorflow, pytorch_model(config, weights)


def pytorch_model(config, weights, model_class=ALGPT2LMHeadModel):
    """A PyTorch model with the given canonical weights, in evaluation mode."""
    tensors = {name: to_torch(array) for name, array in weights.items()}
    model = model_class(config).to(next(iter(tensors.values())).dtype)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


def random_batch(config, length=12, padded=True, seed=0):
    """Token ids (3, length) and their mask, right-padded if asked."""
    ids = np.random.default_rng(seed).integers(config.vocab_size, size=(3, length))
    lengths = np.array([length, length - 3, 1 + length // 3]) if padded else np.array([length] * 3)
    return ids, (np.arange(length) < lengths[:, None]).astype(ids.dtype)


def batches_of_any_shape(config):
    """Token ids (batch, length) and their masks: unpadded, of several shapes; and padded on either side and within."""
    draw = np.random.default_rng(0)
    for batch, length in ((1, 1), (1, 2), (2, 1), (3, 40)):
        ids = draw.integers(config.vocab_size, size=(batch, length))
        yield ids, np.ones_like(ids)
    yield (
        draw.integers(config.vocab_size, size=(4, 5)),
        np.array([[1] * 5, [1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 1, 0, 1]]),
    )


def relative_difference(expected, found):
    """The largest difference of two arrays, relative to the largest entry."""
    expected, found = (x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for x in (expected, found))
    assert expected.shape == found.shape
    return np.abs(expected - found).max() / max(np.abs(expected).max(), 1e-300)


def pretraining_weights(config, dtype="float64", seed=0):
    """Canonical weights with a sentence-order head."""
    draw = np.random.default_rng(seed + 1)
    shapes = head_shapes(config)["ALGPT2ForPreTraining"]
    head = {name: draw.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    return {**random_weights(config, dtype, seed), **head}


def both_pretraining_models(config, dtype="float64", seed=0):
    """As `both_models`, with sentence-order heads."""
    weights = pretraining_weights(config, dtype, seed)
    tensorflow = TFALGPT2ForPreTraining(TFALGPT2Backbone(config, dtype=dtype))
    assign_weights(tensorflow, weights)
    return tensorflow, pytorch_model(config, weights, ALGPT2ForPreTraining)


def close(found, expected, tolerance=1e-12):
    """Whether two tensors differ by no more than `tolerance` times the largest value."""
    return (found - expected).abs().max() <= tolerance * expected.abs().max()


def classifier_weights(config, dtype="float64", seed=0):
    """Canonical weights with a classifier of texts."""
    shape = head_shapes(config)["ALGPT2ForSequenceClassification"]["score.weight"]
    head = np.random.default_rng(seed + 2).normal(size=shape).astype(dtype)
    return {**random_weights(config, dtype, seed), "score.weight": head}
