"""The checkpoints of other systems: for each its table of tensor names, and what its configuration means."""

from algpt2.checkpoints.weight_maps import bilal2vec, gpt2, own, tghattas
from algpt2.checkpoints.weight_maps.weight_map import Dialect, is_wrapped, pytorch_names
from algpt2.errors import InputError

# In the order in which they are tried: the more special first.
DIALECTS = (
    *(tghattas.PYTORCH, gpt2.PYTORCH, bilal2vec.PYTORCH, own.PYTORCH_BEFORE, own.PYTORCH),
    *(own.KERAS_TIED, own.KERAS_BEFORE, own.KERAS, gpt2.KERAS_HUB),
    *(gpt2.KERAS_2, bilal2vec.KERAS_2),
)
MODEL_TYPES = {"algpt2": own.algpt2_config, "gpt2": gpt2.gpt2_config}


def with_model_type(stored):
    """The content of a config.json, with the model_type that its architectures mean where it has none.

    Args:
        stored: dict.

    Returns:
        dict.

    Example:
        >>> with_model_type({"architectures": ["GPT2LMHeadModel"]})["model_type"]
        'gpt2'
    """
    names = stored.get("architectures")
    if stored.get("model_type") is not None or "class_name" in stored or not isinstance(names, list):
        return stored
    # tGhattas/ALGPT2 has the model_type of GPT-2.
    algpt2 = "gpt2" if "factorized_embeds" in stored else "algpt2"
    for prefix, model_type in {"GPT2": "gpt2", "TFGPT2": "gpt2", "ALGPT2": algpt2, "TFALGPT2": algpt2}.items():
        if any(str(name).startswith(prefix) for name in names):
            return {**stored, "model_type": model_type}
    return stored


def config_from(stored):
    """The `ALGPT2Config` that a config.json of any dialect means.

    Args:
        stored: dict, the content of the file.

    Returns:
        `ALGPT2Config`.

    Raises:
        InputError: if it is of another model.

    Example:
        >>> config_from({"model_type": "gpt2", "n_layer": 3}).layer_schedule
        [0, 1, 2]
    """
    if stored.get("class_name") == "TFALGPT2Backbone":
        return own.preset_config(stored)
    if "class_name" in stored:
        return gpt2.keras_hub_config(stored)
    if tghattas.is_tghattas(stored):
        return tghattas.tghattas_config(stored)
    model_type = stored.get("model_type")
    if not isinstance(model_type, str) or model_type not in MODEL_TYPES:
        raise InputError(
            f"model_type is {model_type!r}; expected {' or '.join(MODEL_TYPES)}, or a preset of KerasHub's GPT-2"
        )
    return MODEL_TYPES[model_type](stored)


def find_dialect(naming, stored, tensors):
    """The dialect of some tensors, and the tensors by the names of its table.

    Args:
        naming: str. That of their files, as in `algpt2.checkpoints.formats.Format`.
        stored: dict, the content of config.json.
        tensors: dict of str to tensor, as read.

    Returns:
        tuple of `Dialect` and dict of str to tensor.

    Raises:
        InputError: if they are of no known system.
    """
    if naming == "pytorch":
        tensors = pytorch_names(tensors)
    elif naming == "keras":
        tensors = own.keras_names(tensors)
    elif naming == "keras 2":
        tensors = gpt2.keras_2_names(tensors)
    for dialect in DIALECTS:
        if dialect.naming == naming and dialect.matches(stored, tensors.keys()):
            return dialect, tensors
    shown = ", ".join(list(tensors)[:3]) or "none"
    raise InputError(f"its tensors ({shown}, ...) are of no system that is known here")


__all__ = ["DIALECTS", "Dialect", "config_from", "find_dialect", "is_wrapped", "with_model_type"]
