"""The runtimes of a checkpoint, the precisions of each, and how it is used in them."""

import importlib.util
import shlex
from collections.abc import Callable
from typing import NamedTuple

from algpt2.imports.frameworks import FRAMEWORKS, import_module


class LoadedModel(NamedTuple):
    """A model that is loaded in a runtime.

    Args:
        generate: function of token ids, list of int, and a count, to so many new ones of greedy search.
        token_losses: function as `algpt2.evaluation.perplexity.evaluate` takes it.
        size: int. The bytes of its weights.
    """

    generate: Callable
    token_losses: Callable
    size: int


class Runtime(NamedTuple):
    """One of the runtimes.

    Args:
        title: str. Its name, as people write it.
        package: str. What it is imported by.
        module: str. The module of the project whose function `load` takes a checkpoint and a precision to a
            `LoadedModel`.
        uses: dict of str to str: of each precision the command, or the line of Python, that runs in it
            `{checkpoint}`, or `{quoted}` as a shell takes it.
    """

    title: str
    package: str
    module: str
    uses: dict

    @property
    def is_installed(self):
        """bool."""
        return importlib.util.find_spec(self.package) is not None

    def use(self, precision, checkpoint):
        """str: the command, or the line of Python, that runs a checkpoint (path) in a precision, one of `uses`."""
        name = str(checkpoint)
        return self.uses[precision].format(checkpoint=name, quoted=shlex.quote(name))

    def load(self, checkpoint, precision):
        """The model of a checkpoint in a precision.

        Args:
            checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`; ONNX Runtime also takes an `ExportedCheckpoint`.
            precision: str, one of `uses`.

        Returns:
            `LoadedModel`.

        Raises:
            algpt2.errors.InputError: if it cannot be loaded.
        """
        return import_module(self.module).load(checkpoint, precision)


def quantization(precision):
    """str: what `--quantize` calls a precision; `None` for `"fp32"`."""
    return None if precision == "fp32" else precision


_PYTORCH = "python -m algpt2_pt.generate {quoted}"
_FROM_PRETRAINED = ".from_pretrained({checkpoint!r}"
RUNTIMES = {
    "pytorch": Runtime(
        FRAMEWORKS["pytorch"].title,
        FRAMEWORKS["pytorch"].module,
        "algpt2_pt.benchmark",
        {
            "fp32": _PYTORCH,
            "bf16": f'ALGPT2LMHeadModel{_FROM_PRETRAINED}, dtype="bfloat16")',
            "int8": f"{_PYTORCH} --quantize int8",
        },
    ),
    "tensorflow": Runtime(
        "Keras",
        FRAMEWORKS["tensorflow"].module,
        "algpt2_tf.benchmark",
        {
            "fp32": f"TFALGPT2LMHeadModel{_FROM_PRETRAINED})",
            "bf16": f'TFALGPT2LMHeadModel{_FROM_PRETRAINED}, dtype="bfloat16")',
            "int8": f"algpt2_tf.quantization.quantize_int8(TFALGPT2LMHeadModel{_FROM_PRETRAINED}))",
        },
    ),
    "onnx": Runtime(
        "ONNX Runtime",
        "onnxruntime",
        "algpt2.onnx.benchmark",
        {
            "fp32": f"{_PYTORCH} --runtime onnx",
            "int8": f"{_PYTORCH} --runtime onnx --quantize int8",
            "q4": f"{_PYTORCH} --runtime onnx --quantize q4",
        },
    ),
}
