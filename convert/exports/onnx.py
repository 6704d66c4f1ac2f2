"""ONNX with a key/value cache, in the directory that optimum and transformers.js read as that of a GPT-2."""

from dataclasses import replace

import numpy as np

from algpt2.checkpoints.directories import METADATA_FILES
from algpt2.checkpoints.weight_maps.gpt2 import as_gpt2_config
from algpt2.onnx import FILES
from convert.conversion import read_metadata, write_metadata

OWN_FILES = ("onnx/*.onnx", *METADATA_FILES)


def write(checkpoint, path, quantize=None, unpack=False):
    """Write the graph, config.json of a GPT-2 of the same depth, and the tokenizer.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.
        path: `Path` of a new directory.
        quantize: str, `"int8"` or `"q4"`; `None` means float32.
        unpack: bool. As of `algpt2.onnx.graph.language_model`.

    Raises:
        algpt2.errors.InputError: as of `algpt2.onnx.graph.language_model`.
    """
    from algpt2.onnx.graph import language_model

    metadata, precision = read_metadata(checkpoint), quantize or "float32"
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
