"""A checkpoint as one framework runs it: the two sides of a comparison, behind one interface."""

from algpt2.checkpoints.weight_maps import gpt2
from algpt2.errors import InputError
from algpt2.imports.frameworks import FRAMEWORKS, import_module

# Each module imports its framework, and defines a side and how it is opened.
MODULES = {"pytorch": "convert.sides.pytorch", "tensorflow": "convert.sides.tensorflow"}


def open_side(checkpoint, dtype, framework=None, rounded_to=None):
    """A checkpoint as a framework runs it; a plain GPT-2 as its own library does, unless something else is asked for.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.
        dtype: str, `"float32"` or `"float64"`. That of the computation.
        framework: str, `"pytorch"` or `"tensorflow"`; by default that of the checkpoint's files.
        rounded_to: str, one of `algpt2.checkpoints.formats.lazy_tensor.DTYPES`, that the weights are rounded to first.

    Returns:
        `convert.sides.pytorch.PyTorchSide` or `convert.sides.tensorflow.TensorFlowSide`.

    Raises:
        algpt2.errors.InputError: if it cannot be loaded, or the framework is not installed.
    """
    chosen = framework or checkpoint.format.framework
    # The package sets its framework up before anything else loads that.
    import_module(FRAMEWORKS[chosen].package)
    module = import_module(MODULES[chosen])
    is_gpt2 = checkpoint.dialect in (gpt2.PYTORCH, gpt2.KERAS_HUB)
    if not is_gpt2 or framework or rounded_to:
        return module.open_algpt2(checkpoint, dtype, rounded_to)
    try:
        return module.open_gpt2(checkpoint, dtype)
    except Exception as error:  # of whatever kind transformers and KerasHub raise
        raise InputError(f"{checkpoint.directory}: its own library cannot load it ({error})") from error


def both_frameworks(checkpoint):
    """The two sides of one directory.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.

    Returns:
        list of two dicts, arguments of `open_side`. The weights of both frameworks if they are there; otherwise those
        that are, as their own library runs them and as the other framework does.
    """
    checkpoints = [checkpoint.in_framework(framework) for framework in ("tensorflow", "pytorch")]
    if checkpoints[0].path != checkpoints[1].path:
        return [{"checkpoint": found} for found in checkpoints]
    other = next(name for name in FRAMEWORKS if name != checkpoint.format.framework)
    return [{"checkpoint": checkpoint}, {"checkpoint": checkpoint, "framework": other}]
