"""ONNX with a key/value cache, in the directory that optimum and transformers.js read as that of a GPT-2."""

from dataclasses import replace

import numpy as np

from algpt2.checkpoints.weight_maps.gpt2 import as_gpt2_config
from algpt2.checkpoints.weights import parameter_count
from algpt2.errors import InputError
from algpt2.onnx import FILES
from convert.conversion import read_metadata, write_metadata

PACKAGES = {"onnx": "onnx", "onnxruntime": "onnx"}
# Either framework can be the reference.
FRAMEWORK = None
MARKER = "onnx"
QUANTIZATIONS = ("int8", "q4")
FILE_LIMIT = 2**31


def write(checkpoint, path, quantize=None, unpack=False):
    """Write the graph, config.json of a GPT-2 of the same depth, and the tokenizer.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.
        path: `Path` of a new directory.
        quantize: str, one of `QUANTIZATIONS`; `None` means float32.
        unpack: bool. As of `algpt2.onnx.graph.language_model`.

    Raises:
        InputError: if one file cannot hold the weights, or ONNX Runtime cannot compute the model.
    """
    from algpt2.onnx.graph import PRECISIONS, language_model

    metadata, precision = read_metadata(checkpoint), quantize or "float32"
    bits = PRECISIONS[precision]
    # What a depth adds has 8 bits at least, or 16.
    size = parameter_count(metadata.config) * bits + parameter_count(metadata.config, "depths") * max(0, 16 - bits)
    if size // 8 >= FILE_LIMIT:
        raise InputError(f"{checkpoint.directory}: has more weights than the 2 GB of a file; give --quantize")
    model = language_model(metadata.config, checkpoint.read_weights(), precision, unpack)
    file = path / FILES[quantize]
    file.parent.mkdir(parents=True)
    file.write_bytes(model.SerializeToString())
    write_metadata(path, replace(metadata, config=as_gpt2_config(metadata.config)), "float32")


def outputs(path, quantize=None):
    """The function of an ONNX directory, by ONNX Runtime.

    Args:
        path: `Path` of the directory.
        quantize: as in `write`.

    Returns:
        function from ids and mask, int64 (batch, length), to a dict of `logits`, float32 (batch, length, V).
    """
    from algpt2.onnx.session import OnnxLanguageModel

    model = OnnxLanguageModel(path / FILES[quantize])

    def run(ids, mask):
        positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
        return {"logits": model.run(ids, mask, positions)}

    return run
