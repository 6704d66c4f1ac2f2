"""Write the weights of one framework for the other."""

import shutil
from pathlib import Path

from transformers import GenerationConfig

from algpt2.checkpoint import (
    CONFIG_FILE,
    KERAS_WEIGHTS_FILE,
    METADATA_PATTERNS,
    SAFETENSORS_FILE,
    SAFETENSORS_INDEX_FILE,
    TOKENIZER_FILE,
    files_replaced_in,
    read_checkpoint,
    read_config,
    write_safetensors,
)
from algpt2.errors import InputError
from algpt2.tokenization import load_tokenizer
from algpt2.weights import cast_weights
from algpt2_tf import TFALGPT2Backbone, TFALGPT2ForPreTraining, TFALGPT2LMHeadModel
from algpt2_tf.weights import (
    assign_weights,
    canonical_weights,
    holds_sop_classifier,
    save_keras_weights,
    stored_dtype,
)


def pt2tf(directory, output=None, dtype=None, force=False):
    """Write model.weights.h5 for a directory with safetensors weights.

    Args:
        directory: path. A checkpoint of ALGPT2, or of transformers' GPT-2.
        output: path of a new directory; `None` adds the weights to `directory`.
        dtype: str, one of `algpt2.weights.DTYPES`, for a directory of its own; `None` keeps the stored one.
        force: bool. Whether to replace weights that are there already.

    Returns:
        `Path`: the directory that was written.

    Raises:
        InputError: if the checkpoint cannot be read, or the target is there already or cannot be written.

    Example:
        >>> pt2tf("checkpoint/")  # doctest: +SKIP
    """
    directory = Path(directory)
    config, weights = read_checkpoint(directory)
    target = _target(directory, output, (KERAS_WEIGHTS_FILE,), dtype, force)
    dtype = dtype or _common_dtype(weights)
    model = _model_class("sop_classifier.weight" in weights)(TFALGPT2Backbone(config, dtype=dtype))
    assign_weights(model, cast_weights(weights, dtype), source=directory)
    with files_replaced_in(target) as temporary:
        save_keras_weights(model, temporary / KERAS_WEIGHTS_FILE)
        if target != directory:
            _write_metadata(directory, temporary, config, dtype, model.architecture)
    return target


def tf2pt(directory, output=None, dtype=None, force=False):
    """Write model.safetensors for a directory with model.weights.h5.

    Args:
        directory: path. A checkpoint of ALGPT2.
        output: path of a new directory; `None` adds the weights to `directory`.
        dtype: str, one of `algpt2.weights.DTYPES`, for a directory of its own; `None` keeps the stored one.
        force: bool. Whether to replace weights that are there already.

    Returns:
        `Path`: the directory that was written.

    Raises:
        InputError: if the checkpoint cannot be read, or the target is there already or cannot be written.

    Example:
        >>> tf2pt("runs/demo")  # doctest: +SKIP
    """
    directory = Path(directory)
    config = read_config(directory)
    if not (directory / KERAS_WEIGHTS_FILE).is_file():
        raise InputError(f"{directory}: there is no {KERAS_WEIGHTS_FILE} to convert")
    target = _target(directory, output, (SAFETENSORS_FILE, SAFETENSORS_INDEX_FILE), dtype, force)
    stored = stored_dtype(directory / KERAS_WEIGHTS_FILE)
    model_class = _model_class(holds_sop_classifier(directory / KERAS_WEIGHTS_FILE))
    model = model_class.from_pretrained(directory, dtype=stored, preprocessor=None)
    weights = canonical_weights(model)
    dtype = dtype or _common_dtype(weights)
    with files_replaced_in(target) as temporary:
        write_safetensors(temporary, cast_weights(weights, dtype))
        sharded = (temporary / SAFETENSORS_INDEX_FILE).exists()
        if target != directory:
            _write_metadata(directory, temporary, config, dtype, model.architecture)
    # What stays of an earlier layout would be read first.
    (target / (SAFETENSORS_FILE if sharded else SAFETENSORS_INDEX_FILE)).unlink(missing_ok=True)
    return target


def _model_class(has_sop_classifier):
    return TFALGPT2ForPreTraining if has_sop_classifier else TFALGPT2LMHeadModel


def _target(directory, output, weight_files, dtype, force):
    target = Path(output or directory)
    if (directory / TOKENIZER_FILE).is_file():
        load_tokenizer(directory)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is not a directory")
    if target.exists() and target.samefile(directory):
        target, present = directory, [name for name in weight_files if (directory / name).exists()]
    else:
        present = [file.name for file in target.iterdir()] if target.exists() else []
    if dtype and target == directory:
        raise InputError("--dtype makes another model; give it an --output of its own")
    if present and not force:
        raise InputError(f"{target}: holds {present[0]} already; give --force to replace it, or another --output")
    return target


def _write_metadata(source, destination, config, dtype, architecture):
    for pattern in METADATA_PATTERNS:
        for file in source.glob(pattern):
            if file.is_file() and file.name not in (SAFETENSORS_INDEX_FILE, CONFIG_FILE):
                shutil.copyfile(file, destination / file.name)
    config = type(config).from_dict(config.to_dict())
    config.architectures = [architecture]
    config.dtype = dtype
    config.save_pretrained(destination)
    if not (destination / "generation_config.json").exists():
        GenerationConfig.from_model_config(config).save_pretrained(destination)


def _common_dtype(weights):
    names = {array.dtype.name for array in weights.values()}
    # Of two halves neither holds the other.
    return names.pop() if len(names) == 1 else "float64" if "float64" in names else "float32"
