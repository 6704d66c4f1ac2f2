"""ALGPT2's own checkpoints: PyTorch's tensors have the canonical names, Keras's have paths in an HDF5 file."""

import re
from dataclasses import replace

from algpt2.checkpoints.weight_maps.weight_map import TRANSPOSED, Dialect, Rule
from algpt2.checkpoints.weights import depth_layer
from algpt2.configuration import ALGPT2Config
from algpt2.errors import InputError

BACKBONE = "layers/tfalgpt2_backbone/layers"
# The dense layers of a block of Keras, and the names that the configuration has for them.
KERAS_LINEAR_LAYERS = {
    "c_attn": "attn.c_attn",
    "attn_c_proj": "attn.c_proj",
    "c_fc": "mlp.c_fc",
    "mlp_c_proj": "mlp.c_proj",
}


def algpt2_config(stored):
    """The configuration of a config.json whose model_type is ALGPT2's.

    Args:
        stored: dict.

    Returns:
        `ALGPT2Config`.
    """
    return ALGPT2Config.from_dict(stored)


def preset_config(stored):
    """The configuration of a config.json of a KerasHub preset of ALGPT2.

    Args:
        stored: dict, as `keras.saving.serialize_keras_object` makes it of a backbone.

    Returns:
        `ALGPT2Config`.
    """
    theirs = stored.get("config")
    if not isinstance(theirs, dict) or not isinstance(theirs.get("config"), dict):
        raise InputError("config holds no config of ALGPT2; expected what save_to_preset writes")
    return ALGPT2Config.from_dict(theirs["config"])


def keras_block_numbers(config):
    """The number of each block in a Keras file, which counts them in the order in which they are applied.

    Args:
        config: `ALGPT2Config`.

    Returns:
        list of int.

    Example:
        >>> keras_block_numbers(ALGPT2Config(layer_schedule=[2, 0, 1, 0]))
        [1, 2, 0]
    """
    order = list(dict.fromkeys(config.layer_schedule))
    return [order.index(block) for block in range(config.n_block)]


def keras_depth_numbers(config, block):
    """The number of each depth in a Keras file, which counts those of a block.

    Args:
        config: `ALGPT2Config`.
        block: int.

    Returns:
        dict of int to int.

    Example:
        >>> keras_depth_numbers(ALGPT2Config(layer_schedule=[0, 1, 1, 2], depth_norms=True), 1)
        {1: 0, 2: 1}
    """
    return {depth: number for number, depth in enumerate(config.depths_of(block))}


def keras_names(tensors):
    """Tensors of a Keras file with one name for the backbone.

    Models with other heads have it in other places, and a preset of KerasHub holds it alone.

    Args:
        tensors: dict of str to tensor.

    Returns:
        dict of str to tensor.

    Example:
        >>> keras_names({"layers/functional/layers/dense/vars/0": 1})
        {'layers/tfalgpt2_backbone/layers/dense/vars/0': 1}
    """
    places = r"^(layers/functional|backbone)/layers/"
    if any(name.startswith("layers/tfalgpt2_block/") for name in tensors):
        places = "^layers/"
    return {re.sub(places, f"{BACKBONE}/", name): tensor for name, tensor in tensors.items()}


def keras_linear(theirs, ours):
    """The rules of a Keras dense layer, by its path and the canonical name."""
    return (Rule(f"{theirs}/vars/0", f"{ours}.weight", TRANSPOSED), Rule(f"{theirs}/vars/1", f"{ours}.bias"))


def keras_norm(theirs, ours):
    """The rules of a Keras layer normalization, by its path and the canonical name."""
    return (Rule(f"{theirs}/vars/0", f"{ours}.weight"), Rule(f"{theirs}/vars/1", f"{ours}.bias"))


def keras_block():
    """The rules of a block of Keras, and of what belongs to its depths."""
    rules = []
    theirs, ours = f"{BACKBONE}/tfalgpt2_block{{_b}}", "transformer.h.{b}"
    at_depth = f"{theirs}/depths/tfalgpt2_depth{{_d}}", f"{ours}.depths.{{d}}"
    for path, prefix in ((theirs, ours), at_depth):
        rules += [rule for norm in ("ln_1", "ln_2") for rule in keras_norm(f"{path}/{norm}", f"{prefix}.{norm}")]
    for layer, linear in KERAS_LINEAR_LAYERS.items():
        rules += keras_linear(f"{theirs}/{layer}", f"{ours}.{linear}")
        path, name = f"{at_depth[0]}/{layer}", depth_layer(f"{at_depth[1]}.", linear)
        rules += [Rule(f"{path}/{part}/vars/0", f"{name}.{part}", TRANSPOSED) for part in ("down", "up")]
        rules.append(Rule(f"{path}/vars/0", f"{name}.bias"))
    return tuple(rules)


PYTORCH = Dialect(
    name="ALGPT2 (PyTorch)",
    naming="pytorch",
    matches=lambda stored, names: stored.get("model_type") == "algpt2",
)
# From before version 0.2, when project_out stood outside the transformer.
PYTORCH_BEFORE = Dialect(
    name="ALGPT2 before version 0.2 (PyTorch)",
    naming="pytorch",
    matches=lambda stored, names: stored.get("model_type") == "algpt2" and "project_out.bias" in names,
    rules=tuple(Rule(f"project_out.{part}", f"transformer.project_out.{part}") for part in ("weight", "bias")),
)

KERAS = Dialect(
    name="ALGPT2 (Keras)",
    naming="keras",
    matches=lambda stored, names: any("tfalgpt2_backbone" in name for name in names),
    rules=(
        Rule(f"{BACKBONE}/reversible_embedding/vars/0", "transformer.wte.weight"),
        Rule(f"{BACKBONE}/reversible_embedding/vars/1", "lm_head.weight", TRANSPOSED),
        Rule(f"{BACKBONE}/position_embedding/vars/0", "transformer.wpe.weight"),
        *keras_block(),
        *keras_norm(f"{BACKBONE}/layer_normalization", "transformer.ln_f"),
        *keras_linear(f"{BACKBONE}/dense", "transformer.project_in"),
        *keras_linear(f"{BACKBONE}/dense_1", "transformer.project_out"),
        *keras_linear("layers/sentence_order_head", "sop_classifier"),
        Rule("layers/classification_head/vars/0", "score.weight", TRANSPOSED),
    ),
    # The state of training and of random numbers, which Keras's own `save_weights` writes besides.
    dropped=(r"optimizer/.*", r"(.*/)?seed_generator/.*"),
    block_numbers=keras_block_numbers,
    depth_numbers=keras_depth_numbers,
)
# Tied projections are one layer, which keeps both biases.
KERAS_TIED = replace(
    KERAS,
    matches=lambda stored, names: f"{BACKBONE}/reversible_dense/vars/0" in names,
    rules=(
        *keras_linear(f"{BACKBONE}/reversible_dense", "transformer.project_in"),
        Rule(f"{BACKBONE}/reversible_dense/vars/2", "transformer.project_out.bias"),
        *KERAS.rules,
    ),
)
# From before version 0.2, when project_out stood outside the transformer.
KERAS_BEFORE = replace(
    KERAS,
    name="ALGPT2 before version 0.2 (Keras)",
    matches=lambda stored, names: "layers/dense/vars/0" in names,
    rules=(*keras_linear("layers/dense", "transformer.project_out"), *KERAS.rules),
)
# All of ALGPT2 itself.
DIALECTS = (PYTORCH, PYTORCH_BEFORE, KERAS, KERAS_TIED, KERAS_BEFORE)


def keras_dialect(config):
    """The dialect that Keras writes for a configuration."""
    return KERAS_TIED if config.tie_projections else KERAS
