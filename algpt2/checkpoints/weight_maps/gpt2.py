"""GPT-2 itself: of transformers in PyTorch and, before version 5, in TensorFlow; and of KerasHub."""

import re
from dataclasses import fields

from transformers import GPT2Config

from algpt2.checkpoints.weight_maps.own import keras_linear, keras_norm
from algpt2.checkpoints.weight_maps.weight_map import TRANSPOSED, Dialect, Layout, Rule
from algpt2.configuration import DROPOUTS, ALGPT2Config, layer_schedule
from algpt2.errors import InputError

# What transformers' GPT-2 can be told to compute that ALGPT2 does not, and what ALGPT2 computes.
FIXED = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
# What KerasHub's GPT-2 always computes.
KERAS_HUB_FIXED = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}


def gpt2_config(stored):
    """The configuration of a config.json of transformers' GPT-2.

    Args:
        stored: dict.

    Returns:
        `ALGPT2Config` without sharing and factorization.

    Raises:
        InputError: for a variant that computes something else.
    """
    # Some configurations name the end token of GPT-2's vocabulary, or have it by default, though their own lacks it.
    size = stored.get("vocab_size", GPT2Config.vocab_size)
    tokens = {key: stored.get(key, getattr(GPT2Config, key)) for key in ("bos_token_id", "eos_token_id")}
    outside = {key: None for key, token in tokens.items() if isinstance(token, int) and token >= size}
    theirs = GPT2Config.from_dict({**stored, **outside})
    for field, expected in FIXED.items():
        if getattr(theirs, field) != expected:
            raise InputError(f"{field} is {getattr(theirs, field)}; ALGPT2 computes {expected} only")
    values = {name: getattr(theirs, name) for name in _shared_fields()}
    values.update(embedding_size=None, layer_schedule=layer_schedule("none", theirs.n_layer), architectures=None)
    return ALGPT2Config(**values)


def as_gpt2_config(config):
    """The configuration of transformers' GPT-2 with the values of one of ALGPT2.

    Args:
        config: `ALGPT2Config`; GPT-2 knows nothing of its sharing and its factorization, which are left out.

    Returns:
        `transformers.GPT2Config`.
    """
    theirs = GPT2Config(**{name: getattr(config, name) for name in _shared_fields()})
    theirs.architectures = ["GPT2LMHeadModel"]
    # What some readers of GPT-2 look for.
    theirs.n_ctx = config.n_positions
    return theirs


def _shared_fields():
    return {field.name for field in fields(GPT2Config)} & {field.name for field in fields(ALGPT2Config)}


def keras_hub_config(stored):
    """The configuration of a config.json of KerasHub's GPT-2.

    Args:
        stored: dict, as `keras.saving.serialize_keras_object` makes it of a backbone.

    Returns:
        `ALGPT2Config` without sharing and factorization.

    Raises:
        InputError: for another backbone, or if a value is missing.
    """
    if stored.get("class_name") not in ("GPT2Backbone", "UntiedGPT2Backbone"):
        raise InputError(f"class_name is {stored.get('class_name')!r}; expected GPT2Backbone")
    theirs = stored.get("config")
    if not isinstance(theirs, dict):
        raise InputError(
            f"config is of type {type(theirs).__name__}; expected an object with the values of the backbone"
        )
    try:
        n_layer, dropout = theirs["num_layers"], theirs["dropout"]
        return ALGPT2Config(
            vocab_size=theirs["vocabulary_size"],
            n_positions=theirs["max_sequence_length"],
            n_embd=theirs["hidden_dim"],
            n_head=theirs["num_heads"],
            n_inner=theirs["intermediate_dim"],
            embedding_size=None,
            layer_schedule=layer_schedule("none", n_layer),
            tie_word_embeddings=stored["class_name"] == "GPT2Backbone",
            **dict.fromkeys(DROPOUTS, dropout),
            **KERAS_HUB_FIXED,
        )
    except KeyError as error:
        raise InputError(f"the configuration of {stored['class_name']} has no {error}") from error


# The layers of a block that transformers' GPT-2 keeps with their inputs first.
CONV1DS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
PYTORCH = Dialect(
    name="GPT-2 (transformers)",
    naming="pytorch",
    matches=lambda stored, names: stored.get("model_type") == "gpt2",
    rules=tuple(
        Rule(f"transformer.h.{{b}}.{layer}.weight", f"transformer.h.{{b}}.{layer}.weight", TRANSPOSED)
        for layer in CONV1DS
    ),
    # The causal masks that older versions stored.
    dropped=(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)",),
)

# transformers' TensorFlow models keep the biases of their Conv1D layers as rows.
ROW = Layout(lambda config, shape: (1, *shape))


def keras_2_block(theirs, ours):
    """The rules of a block of transformers' TensorFlow models, by its path and the canonical name."""
    conv1ds = {f"{theirs}/{layer.replace('.', '/')}": f"{ours}.{layer}" for layer in CONV1DS}
    return (
        *(Rule(f"{path}/weight:0", f"{name}.weight", TRANSPOSED) for path, name in conv1ds.items()),
        *(Rule(f"{path}/bias:0", f"{name}.bias", ROW) for path, name in conv1ds.items()),
        *keras_2_norm(f"{theirs}/ln_1", f"{ours}.ln_1"),
        *keras_2_norm(f"{theirs}/ln_2", f"{ours}.ln_2"),
    )


def keras_2_norm(theirs, ours):
    """The rules of a layer normalization of Keras 2, by its path and the canonical name."""
    return (Rule(f"{theirs}/gamma:0", f"{ours}.weight"), Rule(f"{theirs}/beta:0", f"{ours}.bias"))


def keras_2_names(tensors):
    """Tensors of a tf_model.h5 under names that leave out the model and are the same for all versions.

    Args:
        tensors: dict of str to tensor.

    Returns:
        dict of str to tensor.

    Example:
        >>> keras_2_names({"transformer/tfgp_t2lm_head_model_1/transformer/wte/embeddings:0": 1})
        {'transformer/wte/weight:0': 1}
    """
    # A layer, then the model, whose number depends on what was built before, then the layer again.
    names = {name: re.sub(r"^.*?/(?=transformer/|dense/)", "", name) for name in tensors}
    return {names[name].replace("/wte/embeddings:0", "/wte/weight:0"): tensor for name, tensor in tensors.items()}


# The embeddings and the last normalization of all models of transformers that are GPT-2 with changes.
KERAS_2_ENDS = (
    Rule("transformer/wte/weight:0", "transformer.wte.weight"),
    Rule("transformer/wpe/embeddings:0", "transformer.wpe.weight"),
    *keras_2_norm("transformer/ln_f", "transformer.ln_f"),
)
KERAS_2 = Dialect(
    name="GPT-2 (transformers before 5, TensorFlow)",
    naming="keras 2",
    matches=lambda stored, names: stored.get("model_type") == "gpt2",
    rules=(*KERAS_2_ENDS, *keras_2_block("transformer/h_._{b}", "transformer.h.{b}")),
)

HEADS_LAST = Layout(lambda config, shape: (shape[1], *_heads(config)), transposed=True)
HEADS_FIRST = Layout(lambda config, shape: (*_heads(config), shape[0]), transposed=True)
HEAD_BIAS = Layout(lambda config, shape: _heads(config))
DECODER = "layers/transformer_decoder{_b}"
ATTENTION = f"{DECODER}/_self_attention_layer"


def _heads(config):
    return config.n_head, config.n_embd // config.n_head


def _query_key_value(variable):
    return tuple(f"{ATTENTION}/{layer}_dense/vars/{variable}" for layer in ("query", "key", "value"))


KERAS_HUB = Dialect(
    name="GPT-2 (KerasHub)",
    naming="keras",
    matches=lambda stored, names: any(name.startswith("layers/transformer_decoder/") for name in names),
    rules=(
        Rule("layers/reversible_embedding/vars/0", "transformer.wte.weight"),
        Rule("layers/reversible_embedding/vars/1", "lm_head.weight", TRANSPOSED),
        Rule("layers/position_embedding/vars/0", "transformer.wpe.weight"),
        *keras_norm(f"{DECODER}/_self_attention_layer_norm", "transformer.h.{b}.ln_1"),
        Rule(_query_key_value(0), "transformer.h.{b}.attn.c_attn.weight", HEADS_LAST),
        Rule(_query_key_value(1), "transformer.h.{b}.attn.c_attn.bias", HEAD_BIAS),
        Rule(f"{ATTENTION}/output_dense/vars/0", "transformer.h.{b}.attn.c_proj.weight", HEADS_FIRST),
        Rule(f"{ATTENTION}/output_dense/vars/1", "transformer.h.{b}.attn.c_proj.bias"),
        *keras_norm(f"{DECODER}/_feedforward_layer_norm", "transformer.h.{b}.ln_2"),
        *keras_linear(f"{DECODER}/_feedforward_intermediate_dense", "transformer.h.{b}.mlp.c_fc"),
        *keras_linear(f"{DECODER}/_feedforward_output_dense", "transformer.h.{b}.mlp.c_proj"),
        *keras_norm("layers/layer_normalization", "transformer.ln_f"),
    ),
    dropped=(r"(.*/)?seed_generator/.*",),
)
