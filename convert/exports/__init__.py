"""Formats for deployment: what each needs and takes, and the module that writes it and runs it as its users do."""

import importlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ExportFormat:
    """One of the formats.

    Args:
        module: str. The module of its functions `write` and `outputs`, and if an export is a directory, of
            `OWN_FILES`, patterns for all that it may hold.
        packages: dict of str to str. The packages that it takes, and the extra of `pip install` that brings each.
        framework: str. The one that writes it, or whose model it is compared with; `None` for either.
        marker: str. A file of every directory of the format; `None` if an export is a single file.
        suffix: str. How that file is named at the end.
        quantizations: dict of str to tuple of float. How weights can be rounded, and what that may change: a logit,
            relative to the largest logit; and the predictions, by their mean Kullback-Leibler divergence in nats. The
            loss rises by that divergence on text that the checkpoint itself would write.
        default_quantization: str, one of `quantizations`; `None` means float32.
        classifiers: bool. Whether it takes classifiers of texts besides language models.
        options: tuple of str. The arguments of `convert.export.export` that it takes and not every format.
    """

    module: str
    packages: dict
    framework: str | None = None
    marker: str | None = None
    suffix: str = ""
    quantizations: dict = field(default_factory=dict)
    default_quantization: str | None = None
    classifiers: bool = False
    options: tuple = ()

    @property
    def functions(self):
        """The module of the format, imported."""
        return importlib.import_module(self.module)


_ONNX_PACKAGES = {"onnx": "onnx", "onnxruntime": "onnx"}
FORMATS = {
    "savedmodel": ExportFormat(
        "convert.exports.saved_model",
        packages={"tensorflow": "tf"},
        framework="tensorflow",
        marker="saved_model.pb",
        classifiers=True,
    ),
    "litert": ExportFormat(
        "convert.exports.litert",
        packages={"tensorflow": "tf", "ai_edge_litert": "export"},
        framework="tensorflow",
        suffix=".tflite",
        quantizations={"int8": (0.1, 0.01)},
        classifiers=True,
        options=("length",),
    ),
    "onnx": ExportFormat(
        "convert.exports.onnx",
        packages=_ONNX_PACKAGES,
        marker="onnx",
        # ONNX Runtime rounds the other factor of a product by blocks too.
        quantizations={"int8": (0.15, 0.01), "q4": (1.0, 0.25)},
    ),
    "gguf": ExportFormat(
        "convert.exports.gguf",
        packages={"gguf": "export"},
        framework="pytorch",
        suffix=".gguf",
        quantizations={"f16": (0.005, 0.001), "q8_0": (0.1, 0.01), "q4_0": (1.0, 0.25)},
    ),
    "web": ExportFormat(
        "convert.exports.web",
        packages=_ONNX_PACKAGES,
        marker="model.json",
        quantizations={"int8": (0.1, 0.01), "q4": (1.0, 0.25)},
        # One waits for the download of a page; int8 is a quarter of it, and next to nothing is lost.
        default_quantization="int8",
        options=("assets",),
    ),
}
