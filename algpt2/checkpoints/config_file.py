"""config.json: the configuration of a checkpoint, in whatever dialect it is."""

from pathlib import Path

from algpt2.checkpoints import CONFIG_FILE
from algpt2.checkpoints.formats.lazy_tensor import DTYPES
from algpt2.checkpoints.weight_maps import config_from, with_model_type
from algpt2.configuration import ALGPT2Config
from algpt2.errors import InputError
from algpt2.files.atomic import require_whole
from algpt2.files.reading import read_json

# The most keys of a configuration: each takes transformers a while.
CONFIG_KEYS = 1000
# What names code that came with a checkpoint, and is not carried on with its weights.
CODE_KEYS = ("auto_map", "custom_pipelines")


def read_config(path, **overrides):
    """The configuration of a checkpoint, whichever dialect of `algpt2.checkpoints.weight_maps` it is in.

    Args:
        path: path of a directory that holds config.json, or of such a file.
        **overrides: fields of `ALGPT2Config` to set otherwise.

    Returns:
        `ALGPT2Config`.

    Raises:
        InputError: if the file is missing or wrong.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or directory")
    if path.is_dir():
        require_whole(path)
        path = path / CONFIG_FILE
    return parse_config(read_stored_config(path), source=path, **overrides)


def read_stored_config(path):
    """The content of a config.json, with a model_type where its architectures mean one.

    Args:
        path: `Path`.

    Returns:
        dict.

    Raises:
        InputError: if the file is missing or damaged.
    """
    return with_model_type(read_json(path))


def parse_config(stored, source, **overrides):
    """The configuration that the content of a config.json means.

    Args:
        stored: dict.
        source: path. Names the file in an error.
        **overrides: as in `read_config`.

    Returns:
        `ALGPT2Config`.

    Raises:
        InputError: if it is wrong.
    """
    if len(stored) > CONFIG_KEYS:
        raise InputError(
            f"{source}: has {len(stored):,} keys, more than the {CONFIG_KEYS} that a configuration may have"
        )
    for key in stored:
        if callable(getattr(ALGPT2Config, key, None)):
            raise InputError(f"{source}: {key} is no field of a configuration; remove it")
    stored = {key: value for key, value in stored.items() if key not in CODE_KEYS}
    for key in ("dtype", "torch_dtype"):
        if stored.get(key) is not None and (not isinstance(stored[key], str) or stored[key] not in DTYPES):
            raise InputError(f"{source}: {key} is {stored[key]!r}; expected one of {', '.join(DTYPES)}")
    try:
        config = config_from(stored)
        return ALGPT2Config.from_dict(config.to_dict(), **overrides) if overrides else config
    except Exception as error:  # of whatever kind transformers raises
        raise InputError(f"{source}: {error}") from error
