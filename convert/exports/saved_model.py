"""A SavedModel, for TensorFlow Serving."""

import contextlib
import tempfile
from pathlib import Path

import numpy as np

from convert.comparison import Comparison, fixed_batches
from convert.sides import open_side

OWN_FILES = ("saved_model.pb", "fingerprint.pb", "variables/*", "assets/*")


def write(checkpoint, path, quantize=None):
    """Write a SavedModel; see `algpt2_tf.export.export_saved_model`.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.
        path: `Path` of a new directory.
        quantize: not used.
    """
    from algpt2_tf import export

    model = open_side(checkpoint, "float32", "tensorflow").model
    if checkpoint.is_language_model:
        model.compile(sampler="greedy")
    with errors_of_tensorflow():
        export.export_saved_model(model, path, _stop_token_ids(checkpoint))


@contextlib.contextmanager
def errors_of_tensorflow():
    """Errors of TensorFlow as those of the system; a full disk, for one, is not an OSError there."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        raise OSError(error.message) from error


def outputs(path, quantize=None):
    """The function of a SavedModel, by TensorFlow.

    Args:
        path: `Path` of the directory.
        quantize: not used.

    Returns:
        function from ids and mask, int64 (batch, length), to a dict of `logits`, float32 (batch, length, V) or, of a
        classifier, (batch, classes).
    """
    return _signature(path, "serving_default")


def more_comparisons(checkpoint, path):
    """The comparison of greedy continuations of the first half of the fixed token ids, one at least, to their length.

    A classifier continues nothing.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.
        path: `Path` of its export.

    Returns:
        list of `convert.comparison.Comparison`.
    """
    import tensorflow as tf

    if not checkpoint.is_language_model:
        return []
    model = open_side(checkpoint, "float32", "tensorflow").model
    ids, mask = fixed_batches(model.config)["unpadded"]
    mask[:, max(1, ids.shape[1] // 2) :] = 0
    model.compile(sampler="greedy")
    inputs = {"token_ids": ids.astype("int32"), "padding_mask": mask}
    expected = tf.function(model.generate_step)(inputs, _stop_token_ids(checkpoint))
    found = _signature(path, "generate")(ids, mask)
    ends = np.asarray(expected["padding_mask"])
    same = np.array_equal(ends, found["padding_mask"]) and np.array_equal(
        np.asarray(expected["token_ids"])[ends], found["token_ids"][ends]
    )
    return [Comparison("greedy continuation", (), None, None, same)]


def _signature(path, name):
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as plain:
        # TensorFlow takes the name of the weights for a pattern.
        link = Path(plain, "model")
        link.symlink_to(path.resolve())
        # The signature alone does not keep the weights.
        loaded = tf.saved_model.load(str(link))

    def call(ids, mask):
        outputs = loaded.signatures[name](token_ids=ids.astype("int32"), padding_mask=mask.astype("int32"))
        return {key: output.numpy() for key, output in outputs.items()}

    return call


def _stop_token_ids(checkpoint):
    # Where there is a tokenizer, it knows better than some configurations.
    holder = checkpoint.require_tokenizer() if checkpoint.tokenizer else checkpoint.config
    return None if holder.eos_token_id is None else tuple(np.atleast_1d(holder.eos_token_id).tolist())
