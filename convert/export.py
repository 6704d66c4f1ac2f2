"""Write a checkpoint in a format for deployment, and compare what its runtime computes with the checkpoint."""

import importlib.util
from pathlib import Path

import numpy as np

from algpt2.atomic import directory_replaced, file_replaced
from algpt2.checkpoints.checkpoint import opened
from algpt2.checkpoints.weights import parameter_count
from algpt2.errors import InputError
from convert.comparison import TOLERANCES, Comparison, compare_logits, fixed_batches
from convert.sides import open_side, runtimes

# The packages that a format takes, and the extras of setup.py that bring them.
PACKAGES = {
    "savedmodel": {"tensorflow": "tf"},
    "litert": {"tensorflow": "tf", "ai_edge_litert": "export"},
    "onnx": {"torch": "pt", "onnx": "export", "onnxscript": "export", "onnxruntime": "export"},
}
FRAMEWORKS = {"savedmodel": "tensorflow", "litert": "tensorflow", "onnx": "pytorch"}
RUNTIMES = {
    "savedmodel": runtimes.saved_model_outputs,
    "litert": runtimes.litert_outputs,
    "onnx": runtimes.onnx_outputs,
}
# Of the formats that are a file.
SUFFIXES = {"litert": ".tflite", "onnx": ".onnx"}
FILE_LIMIT = 2**31
SAVED_MODEL_FILE = "saved_model.pb"
# What rounding to int8 may change: a logit, relative to the largest logit; and the predictions, by their mean
# Kullback-Leibler divergence in nats. The loss rises by that divergence on text that the checkpoint itself would write.
INT8_TOLERANCE = 0.1
INT8_DIVERGENCE = 0.01


def export(directory, to, output, quantize=None, length=None, force=False):
    """Write a checkpoint in a format for deployment, with float32 weights if they are not quantized.

    Args:
        directory: str or path. A checkpoint directory of any system, or the id of a hub repository; or an open
            checkpoint.
        to: str. `"savedmodel"`, `"litert"` or `"onnx"`.
        output: path. A directory for `"savedmodel"`, else a file that ends in .tflite or .onnx.
        quantize: str. `"int8"`, for `"litert"`.
        length: int. The fixed length of a `"litert"` file, whose batch then is 1; `None` leaves both open.
        force: bool. Whether to replace an export that is there already.

    Returns:
        `Path`: the output.

    Raises:
        InputError: if a package is missing, the checkpoint cannot be read, or the output is there already or cannot be
            written.

    Example:
        >>> export("runs/demo", "savedmodel", "serving/algpt2/1")  # doctest: +SKIP
    """
    _check_packages(to)
    if to != "litert" and (quantize or length):
        raise InputError(f"--quantize and --length are for --to litert, not for {to}")
    checkpoint, output = opened(directory), Path(output)
    config = checkpoint.config
    if length and length > config.n_positions:
        raise InputError(f"--length {length} is more than n_positions {config.n_positions}")
    if to == "onnx" and config.n_positions < 2:
        raise InputError("n_positions is 1; an ONNX file takes any length, so the model needs 2 or more")
    if to in SUFFIXES and 4 * parameter_count(config) >= FILE_LIMIT:
        raise InputError(
            f"{checkpoint.directory}: has more weights than the 2 GB that a file can hold; export it to savedmodel"
        )
    _check_output(output, to, force)
    model = open_side(checkpoint, "float32", FRAMEWORKS[to]).model
    # `_check_output` has seen that a directory that is there holds an earlier export.
    replaced = file_replaced if to in SUFFIXES else directory_replaced
    with replaced(output) as path:
        if path.is_dir():
            # The exporter makes it.
            path.rmdir()
        if to == "onnx":
            from algpt2_pt.export import export_onnx

            export_onnx(model, path)
        else:
            _export_keras(model, _stop_token_ids(checkpoint), to, path, quantize, length)
    return output


def compare_export(directory, to, output, quantize=None, length=None):
    """Run an export by its runtime and compare it with its checkpoint on fixed token ids, unpadded and padded.

    Args:
        directory, to, output, quantize, length: as in `export`.

    Returns:
        tuple of the names of the sides and the list of `Comparison`: the largest difference of two logits; for
        `"savedmodel"` also a greedy continuation; with `quantize` also the Kullback-Leibler divergence of the
        predictions and the share of the positions whose likeliest token is another. What passes then is
        `INT8_TOLERANCE` and `INT8_DIVERGENCE`.

    Example:
        >>> compare_export("runs/demo", "litert", "model.tflite", quantize="int8")  # doctest: +SKIP
    """
    checkpoint = opened(directory)
    side = open_side(checkpoint, "float32", FRAMEWORKS[to])
    functions = [side.outputs, RUNTIMES[to](output)]
    tolerance = INT8_TOLERANCE if quantize else TOLERANCES["float32"]
    comparisons = compare_logits(functions, checkpoint.config, tolerance, length)
    if quantize:
        batch = fixed_batches(checkpoint.config, length)["unpadded"]
        comparisons += _compare_predictions(*(function(*batch)["logits"] for function in functions))
    if to == "savedmodel":
        comparisons.append(_compare_generation(side.model, _stop_token_ids(checkpoint), output))
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


def _check_packages(to):
    missing = {name: extra for name, extra in PACKAGES[to].items() if importlib.util.find_spec(name) is None}
    if missing:
        extras = ",".join(dict.fromkeys(missing.values()))
        raise InputError(f"--to {to} needs {', '.join(missing)}; run pip install 'algpt2[{extras}]'")


def _check_output(output, to, force):
    if to in SUFFIXES and output.suffix != SUFFIXES[to]:
        raise InputError(f"{output}: a file for {to} is named with {SUFFIXES[to]} at the end")
    if not output.exists():
        return
    if output.is_dir() != (to == "savedmodel"):
        raise InputError(f"{output}: is {'a' if output.is_dir() else 'not a'} directory; give another --output")
    if not force:
        raise InputError(f"{output}: is there already; give --force to replace it, or another --output")
    if output.is_dir() and not (output / SAVED_MODEL_FILE).is_file():
        raise InputError(f"{output}: is a directory without {SAVED_MODEL_FILE}; give another --output")


def _export_keras(model, stop_token_ids, to, path, quantize, length):
    import tensorflow as tf

    from algpt2_tf.export import export_litert, export_saved_model

    model.compile(sampler="greedy")
    try:
        if to == "savedmodel":
            export_saved_model(model, path, stop_token_ids)
        else:
            export_litert(model, path, quantize, length)
    except tf.errors.OpError as error:
        # A full disk, for one, is not an OSError of TensorFlow's.
        raise OSError(error.message) from error


def _stop_token_ids(checkpoint):
    # Where there is a tokenizer, it knows better than some configurations.
    holder = checkpoint.require_tokenizer() if checkpoint.tokenizer else checkpoint.config
    return None if holder.eos_token_id is None else tuple(np.atleast_1d(holder.eos_token_id).tolist())


def _compare_predictions(expected, found):
    expected_log, found_log = (_log_softmax(logits.astype("float64")) for logits in (expected, found))
    divergence = float((np.exp(expected_log) * (expected_log - found_log)).sum(-1).mean())
    others = float((expected.argmax(-1) != found.argmax(-1)).mean())
    passed = divergence <= INT8_DIVERGENCE
    return [
        Comparison("Kullback-Leibler divergence, nats a token", (), divergence, INT8_DIVERGENCE, passed),
        # Told, not judged: where two tokens are about as likely, it says little.
        Comparison("share of positions with another likeliest token", (), others, 1.0, True),
    ]


def _log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _compare_generation(model, stop_token_ids, output):
    """Continuations of the first half of the fixed token ids, one at least, up to their length."""
    import tensorflow as tf

    ids, mask = fixed_batches(model.config)["unpadded"]
    mask[:, max(1, ids.shape[1] // 2) :] = 0
    model.compile(sampler="greedy")
    inputs = {"token_ids": ids.astype("int32"), "padding_mask": mask}
    expected = tf.function(model.generate_step)(inputs, stop_token_ids)
    found = runtimes.saved_model_signature(output, "generate")(ids, mask)
    ends = np.asarray(expected["padding_mask"])
    same = np.array_equal(ends, found["padding_mask"]) and np.array_equal(
        np.asarray(expected["token_ids"])[ends], found["token_ids"][ends]
    )
    return Comparison("greedy continuation", (), None, None, same)
