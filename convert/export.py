"""Write a checkpoint in a format for deployment, and compare what its runtime computes with the checkpoint."""

import importlib.util
from pathlib import Path

import numpy as np

from algpt2.checkpoints.checkpoint import opened
from algpt2.checkpoints.weights import parameter_count
from algpt2.errors import InputError
from algpt2.files.atomic import directory_replaced, file_replaced
from algpt2.files.names import foreign_file
from algpt2.generation.sampling import log_softmax
from algpt2.imports.frameworks import installed_frameworks
from convert.comparison import TOLERANCES, Comparison, compare_logits, fixed_batches
from convert.exports import FORMATS
from convert.sides import open_side


def export(directory, to, output, quantize=None, length=None, force=False, assets=None):
    """Write a checkpoint in a format for deployment.

    Args:
        directory: str or path. A checkpoint directory of any system, or the id of a hub repository; or an open
            `algpt2.checkpoints.checkpoint.Checkpoint`.
        to: str, one of `convert.exports.FORMATS`.
        output: path. A file for `"litert"` and `"gguf"`, else a directory.
        quantize: str. How the weights are rounded: `"int8"` for `"litert"`; `"int8"` or `"q4"` for `"onnx"` and
            `"web"`; `"f16"`, `"q8_0"` or `"q4_0"` for `"gguf"`; `"none"` for float32. By default `"int8"` for `"web"`,
            else `"none"`.
        length: int. The fixed length of a `"litert"` file, whose batch then is 1; `None` leaves both open.
        force: bool. Whether to replace an export that is there already.
        assets: path. Of `"web"`: where npm installed transformers.js, which is copied; `None` names it on a CDN.

    Returns:
        `Path`: the output.

    Raises:
        InputError: if a package is missing, the checkpoint cannot be read, or the output is there already or cannot be
            written.

    Example:
        >>> export("runs/demo", "savedmodel", "serving/algpt2/1")  # doctest: +SKIP
    """
    target = FORMATS[to]
    _check_packages(to, target.packages)
    quantize = quantization(to, quantize)
    given = {"length": length, "assets": assets}
    options = {name: given.pop(name) for name in target.options}
    for name, value in given.items():
        if value:
            others = " and ".join(other for other in FORMATS if name in FORMATS[other].options)
            raise InputError(f"--{name} is for --to {others}, not for {to}")
    checkpoint, output = opened(directory), Path(output)
    if not checkpoint.is_language_model and not target.classifiers:
        others = " and ".join(other for other in FORMATS if FORMATS[other].classifiers)
        raise InputError(
            f"{checkpoint.path}: is of {checkpoint.architecture}; {to} takes language models, and only {others} take "
            "classifiers of texts"
        )
    if length and length > checkpoint.config.n_positions:
        raise InputError(f"--length {length} is more than n_positions {checkpoint.config.n_positions}")
    _check_output(output, to, checkpoint.directory, force)
    # `_check_output` has seen that a directory that is there holds an earlier export, and nothing else.
    replaced = directory_replaced if target.marker else file_replaced
    with replaced(output) as path:
        if path.is_dir():
            # The writer makes it.
            path.rmdir()
        target.functions.write(checkpoint, path, quantize, **options)
    return output


def quantization(to, quantize=None):
    """How a format rounds the weights.

    Args:
        to, quantize: as in `export`.

    Returns:
        str, or `None` for float32.

    Raises:
        InputError: if the format does not take it.

    Example:
        >>> quantization("web"), quantization("web", "none"), quantization("onnx")
        ('int8', None, None)
    """
    target = FORMATS[to]
    if quantize is None:
        return target.default_quantization
    if quantize != "none" and quantize not in target.quantizations:
        known = ", ".join(target.quantizations) or "none"
        raise InputError(f"--quantize {quantize} is not for --to {to}, which takes {known}")
    return None if quantize == "none" else quantize


def compare_export(directory, to, output, quantize=None, length=None):
    """Run an export by its runtime and compare it with its checkpoint on fixed token ids, unpadded and padded.

    Args:
        directory, to, output, quantize, length: as in `export`.

    Returns:
        tuple of the names of the sides and the list of `Comparison`: the largest difference of two logits; for
        `"savedmodel"` also a greedy continuation; with `quantize` also the Kullback-Leibler divergence of the
        predictions and the share of the positions whose likeliest token is another. What passes then stands in the
        `quantizations` of the format.

    Example:
        >>> compare_export("runs/demo", "litert", "model.tflite", quantize="int8")  # doctest: +SKIP
    """
    target, checkpoint, output = FORMATS[to], opened(directory), Path(output)
    quantize = quantization(to, quantize)
    side = open_side(checkpoint, "float32", target.framework or _installed_framework())
    functions = [side.outputs, target.functions.outputs(output, quantize)]
    tolerance, divergence = target.quantizations[quantize] if quantize else (TOLERANCES["float32"], None)
    comparisons = compare_logits(functions, checkpoint.config, tolerance, length)
    if quantize:
        batch = fixed_batches(checkpoint.config, length)["unpadded"]
        comparisons += _compare_predictions(*(function(*batch)["logits"] for function in functions), divergence)
    if hasattr(target.functions, "more_comparisons"):
        comparisons += target.functions.more_comparisons(checkpoint, output)
    return [side.name, f"{to} export"], comparisons


def describe_size(directory, output):
    """A line about the size of an export and of the weights of its checkpoint.

    Args:
        directory, output: as in `export`.

    Returns:
        str.
    """
    output, count = Path(output), parameter_count(opened(directory).config)
    size = sum(file.stat().st_size for file in (output, *output.rglob("*")) if file.is_file())
    return f"{output}: {size:,} bytes; {count:,} parameters take {4 * count:,} in float32"


def _installed_framework():
    for framework in installed_frameworks():
        return framework
    raise InputError("neither torch nor tensorflow is installed, to compare the export with; give --no-verify")


def _check_packages(to, packages):
    missing = {name: extra for name, extra in packages.items() if importlib.util.find_spec(name) is None}
    if missing:
        extras = ",".join(dict.fromkeys(missing.values()))
        raise InputError(f"--to {to} needs {', '.join(missing)}; run pip install 'algpt2[{extras}]'")


def _check_output(output, to, source, force):
    target = FORMATS[to]
    if not output.name.endswith(target.suffix):
        raise InputError(f"{output}: a file for {to} is named with {target.suffix} at the end")
    if not output.exists():
        return
    if output.is_dir() != bool(target.marker):
        raise InputError(f"{output}: is {'a' if output.is_dir() else 'not a'} directory; give another --output")
    if source.resolve().is_relative_to(output.resolve()):
        raise InputError(f"{output}: is or holds the checkpoint {source}; give another --output")
    if not force:
        raise InputError(f"{output}: is there already; give --force to replace it, or another --output")
    if target.marker and not (output / target.marker).exists():
        raise InputError(f"{output}: is a directory without {target.marker}; give another --output")
    if target.marker and (name := foreign_file(output, target.functions.OWN_FILES)):
        raise InputError(f"{output}: holds {name}, which is no part of an export to {to}; give another --output")


def _compare_predictions(expected, found, allowed):
    expected_log, found_log = (log_softmax(logits.astype("float64")) for logits in (expected, found))
    divergence = float((np.exp(expected_log) * (expected_log - found_log)).sum(-1).mean())
    others = float((expected.argmax(-1) != found.argmax(-1)).mean())
    # Of a language model (batch, length, V), of a classifier (batch, classes).
    each, where, one = ("token", "positions", "token") if expected.ndim == 3 else ("text", "texts", "class")
    return [
        Comparison(f"Kullback-Leibler divergence, nats a {each}", (), divergence, allowed, divergence <= allowed),
        # Told, not judged: where two tokens are about as likely, it says little.
        Comparison(f"share of {where} with another likeliest {one}", (), others, 1.0, True),
    ]
