"""The model that the arguments of training describe."""

import dataclasses
import os
from pathlib import Path

from algpt2.checkpoints import CONFIG_FILE
from algpt2.checkpoints.config_file import read_config, read_stored_config
from algpt2.config_arguments import parse_overrides, parse_sharing
from algpt2.configuration import DROPOUTS, PRESETS, ALGPT2Config
from algpt2.errors import InputError


def model_config(arguments, source=None):
    """The model that the arguments describe.

    New weights are drawn with the standard deviation 1 / sqrt(n_embd), unless the configuration says another: with
    GPT-2's 0.02, made for a width of 768, small models stay on a plateau for long (docs/results.md).

    Args:
        arguments: `argparse.Namespace` of `algpt2.training.arguments.train_parser`.
        source: `algpt2.checkpoints.checkpoint.Checkpoint` of `--init-from`, if it is given.

    Returns:
        `algpt2.ALGPT2Config`.

    Raises:
        InputError: if a value is wrong.
    """
    stated = {}
    if source:
        config = source.config
    elif arguments.config:
        path = _config_path(arguments.config)
        config = read_config(path)
        stated = read_stored_config(path / CONFIG_FILE if path.is_dir() else path)
    else:
        config, stated = ALGPT2Config.from_preset(arguments.preset), PRESETS[arguments.preset]
    known = {"model_type", "auto_map", *(field.name for field in dataclasses.fields(config))}
    unknown = sorted(name for name in vars(config) if name not in known and not name.startswith("_"))
    if unknown:
        print(f"{arguments.init_from or arguments.config}: not used: {', '.join(unknown)}", flush=True)
    try:
        overrides = _overrides(arguments, config)
        if source:
            return ALGPT2Config.from_dict(config.to_dict(), **overrides)
        # Parameters of single depths are those of its own depths.
        config = ALGPT2Config.from_dict(config.to_dict(), **{"trained_schedule": None, **overrides})
    except (ValueError, TypeError) as error:
        raise InputError(str(error)) from error
    if "initializer_range" not in {**stated, **overrides}:
        config.initializer_range = round(config.n_embd**-0.5, 4)
    return config


def _config_path(name):
    """The file of `--config`, which may name one of configs/."""
    package = Path(__file__).parents[1]
    # In the package where it is installed, beside it in a clone.
    for place in (package, package.parent):
        shipped = place / "configs" / f"{name}.json"
        if not os.path.exists(name) and shipped.is_file():
            return shipped
    return Path(name)


def _overrides(arguments, config):
    overrides = parse_overrides(arguments.config_override or [])
    depth = arguments.depth or overrides.get("n_layer") or config.n_layer
    if arguments.sharing:
        overrides["layer_schedule"] = schedule = parse_sharing(arguments.sharing, depth)
        if arguments.depth and len(schedule) != arguments.depth:
            raise InputError(f"--sharing {arguments.sharing} names {len(schedule)} depths, --depth {arguments.depth}")
    elif arguments.depth:
        overrides["n_layer"] = arguments.depth
    if arguments.embedding_size is not None:
        overrides["embedding_size"] = arguments.embedding_size or None
    if arguments.dropout is not None:
        overrides |= dict.fromkeys(DROPOUTS, arguments.dropout)
    return overrides
