"""LiteRT, for phones and other devices: one file of built-in operations."""

import numpy as np

from algpt2.checkpoints.weights import parameter_count
from algpt2.errors import InputError
from convert.exports.saved_model import errors_of_tensorflow
from convert.sides import open_side

FILE_LIMIT = 2**31


def write(checkpoint, path, quantize=None, length=None):
    """Write a LiteRT file; see `algpt2_tf.export.export_litert`.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.
        path: `Path` of the file.
        quantize: str, `"int8"`; `None` means float32.
        length: int, that is fixed, with a batch of 1; `None` leaves both open.

    Raises:
        InputError: if a file cannot hold the weights.
    """
    from algpt2_tf import export

    if 4 * parameter_count(checkpoint.config) >= FILE_LIMIT:
        raise InputError(f"{checkpoint.directory}: has more weights than the 2 GB of a file; export it to savedmodel")
    with errors_of_tensorflow():
        export.export_litert(open_side(checkpoint, "float32", "tensorflow").model, path, quantize, length)


def outputs(path, quantize=None):
    """The function of a LiteRT file, by LiteRT's interpreter; a file of a fixed length gets one padded row at a time.

    Args:
        path: `Path`.
        quantize: not used: the file says it.

    Returns:
        function from ids and mask, int64 (batch, length), to a dict of `logits`, float32 (batch, length, V) or, of a
        classifier, (batch, classes).
    """
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    _, fixed_length = runner.get_input_details()["token_ids"]["shape_signature"]

    def run(ids, mask):
        return runner(token_ids=ids.astype("int32"), padding_mask=mask.astype("int32"))

    def run_row_by_row(ids, mask):
        padding = ((0, 0), (0, fixed_length - ids.shape[1]))
        rows = zip(np.pad(ids, padding), np.pad(mask, padding), strict=True)
        logits = np.concatenate([run(row[None], row_mask[None])["logits"] for row, row_mask in rows])
        return {"logits": logits[:, : ids.shape[1]] if logits.ndim == 3 else logits}

    return run if fixed_length < 0 else run_row_by_row
