"""What the runtimes of the exports compute; each function imports only what it runs."""

import numpy as np


def saved_model_signature(directory, name):
    """The function of a signature of a SavedModel, by TensorFlow.

    Args:
        directory: path.
        name: str.

    Returns:
        function from token ids and their mask, int64 (batch, length), to a dict of str to numpy array.
    """
    import tensorflow as tf

    # The signature alone does not keep the weights.
    loaded = tf.saved_model.load(str(directory))

    def call(ids, mask):
        outputs = loaded.signatures[name](token_ids=ids.astype("int32"), padding_mask=mask.astype("int32"))
        return {key: output.numpy() for key, output in outputs.items()}

    return call


def saved_model_outputs(directory):
    """The function of a SavedModel, by TensorFlow.

    Args:
        directory: path.

    Returns:
        function from token ids and their mask, int64 (batch, length), to a dict of `logits`, float32 (batch, length,
        V).
    """
    return saved_model_signature(directory, "serving_default")


def litert_outputs(path):
    """The function of a LiteRT file, by LiteRT's interpreter; a file of a fixed length gets one padded row at a time.

    Args:
        path: path.

    Returns:
        function as of `saved_model_outputs`.
    """
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_path=str(path)).get_signature_runner()
    _, fixed_length = runner.get_input_details()["token_ids"]["shape_signature"]

    def run(ids, mask):
        return runner(token_ids=ids.astype("int32"), padding_mask=mask.astype("int32"))

    def run_row_by_row(ids, mask):
        padding = ((0, 0), (0, fixed_length - ids.shape[1]))
        rows = zip(np.pad(ids, padding), np.pad(mask, padding), strict=True)
        logits = [run(row[None], row_mask[None])["logits"] for row, row_mask in rows]
        return {"logits": np.concatenate(logits)[:, : ids.shape[1]]}

    return run if fixed_length < 0 else run_row_by_row


def onnx_outputs(path):
    """The function of an ONNX file, by onnxruntime.

    Args:
        path: path.

    Returns:
        function as of `saved_model_outputs`.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda ids, mask: {"logits": session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]}
