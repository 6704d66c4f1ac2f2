"""Write the weights of a checkpoint, in whatever dialect it is, for one of the frameworks."""

import contextlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerFast

from algpt2.checkpoints import MODEL_CARD_FILE
from algpt2.checkpoints.casting import Casting
from algpt2.checkpoints.checkpoint import Checkpoint, open_checkpoint, write_checkpoint_weights
from algpt2.checkpoints.config_file import read_config
from algpt2.checkpoints.directories import CHECKPOINT_FILES, find_checkpoint, leads_out
from algpt2.checkpoints.formats import FORMATS, KERAS, SAFETENSORS
from algpt2.checkpoints.weight_maps import own
from algpt2.configuration import AUTO_MAP
from algpt2.data.tokenizer import save_tokenizer
from algpt2.errors import InputError
from algpt2.files.atomic import files_replaced_in
from algpt2.training.run_directory import ARGUMENTS_FILE
from convert.sources import opened_source

# What a checkpoint that is replaced may leave behind in the target: files, then folders if they are empty.
STALE = (*CHECKPOINT_FILES, "additional_chat_templates", "assets/tokenizer", "assets")
TARGETS = {"pytorch": SAFETENSORS, "tensorflow": KERAS}
ONLY_PYTORCH = ("ALGPT2ForTokenClassification", "ALGPT2ForQuestionAnswering")


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Args:
        source: `algpt2.checkpoints.checkpoint.Checkpoint`.
        directory: `Path`.
        dtype: str. That of the weights.
        rounding_error: float. The largest change of a value by rounding, relative to the largest of its tensor.
        rounded_tensor: str. The canonical name of the weight with that change; `None` if nothing was rounded.
    """

    source: Checkpoint
    directory: Path
    dtype: str
    rounding_error: float
    rounded_tensor: str | None


def pt2tf(directory, output=None, dtype=None, force=False, max_shard_size="5GB"):
    """Write Keras's weights for a directory with PyTorch's.

    Args:
        directory: path. A checkpoint in any of `algpt2.checkpoints.weight_maps.DIALECTS` whose files are PyTorch's.
        output: path of a new directory; `None` adds the weights to `directory`, which must then be ALGPT2's own.
        dtype: str, one of `algpt2.checkpoints.formats.lazy_tensor.DTYPES`, only with an `output`; `None` keeps the
            stored one.
        force: bool. Whether to replace weights that are there already.
        max_shard_size: int in bytes, or str such as `"5GB"`. Larger weights become shards with an index.

    Returns:
        `Conversion`.

    Raises:
        algpt2.errors.InputError: if the checkpoint cannot be read, or the target is there already or cannot be written.

    Example:
        >>> pt2tf("checkpoint/")  # doctest: +SKIP
    """
    return convert_checkpoint(_opened(directory, "pytorch", output), "tensorflow", output, dtype, force, max_shard_size)


def tf2pt(directory, output=None, dtype=None, force=False, max_shard_size="5GB"):
    """Write safetensors for a directory with Keras's weights; the arguments are those of `pt2tf`.

    Example:
        >>> tf2pt("runs/demo")  # doctest: +SKIP
    """
    return convert_checkpoint(_opened(directory, "tensorflow", output), "pytorch", output, dtype, force, max_shard_size)


def to_tf(source, output, dtype=None, force=False, max_shard_size="5GB", base=None):
    """Write a directory with Keras's weights from a checkpoint of any system, a GGUF file or an adapter of PEFT.

    Args:
        source, base: as in `convert.sources.opened_source`.
        output, dtype, force, max_shard_size: as in `pt2tf`.

    Returns:
        `Conversion`.

    Raises:
        algpt2.errors.InputError: as `pt2tf`, and as `convert.sources.opened_source`.

    Example:
        >>> to_tf("gpt2/", "gpt2-tf/")  # doctest: +SKIP
    """
    return convert_checkpoint(opened_source(source, base), "tensorflow", output, dtype, force, max_shard_size)


def to_pt(source, output, dtype=None, force=False, max_shard_size="5GB", base=None):
    """Write a directory with safetensors from what `to_tf` takes; the arguments are the same.

    Example:
        >>> to_pt("model-q8_0.gguf", "checkpoint/")  # doctest: +SKIP
        >>> to_pt("adapter/", "merged/", base="checkpoint/")  # doctest: +SKIP
    """
    return convert_checkpoint(opened_source(source, base), "pytorch", output, dtype, force, max_shard_size)


def _opened(directory, framework, output):
    # Without an output the weights are added to the directory, which must then not be a download.
    checkpoint = open_checkpoint(find_checkpoint(directory) if output else directory, framework)
    if checkpoint.format.framework != framework:
        files = ", ".join(kind.file for kind in FORMATS if kind.framework == framework)
        raise InputError(f"{directory}: holds none of {files}; found {checkpoint.path.name} only")
    return checkpoint


def convert_checkpoint(checkpoint, framework, output=None, dtype=None, force=False, max_shard_size="5GB"):
    """Write the weights of a checkpoint for a framework, in files that are there as a whole or not at all.

    The values go from file to file in small pieces, so that memory does not grow with the model.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.
        framework: str, `"pytorch"` or `"tensorflow"`.
        output, dtype, force, max_shard_size: as in `pt2tf`.

    Returns:
        `Conversion`.

    Raises:
        algpt2.errors.InputError: as `pt2tf`.
    """
    if framework == "tensorflow" and checkpoint.architecture in ONLY_PYTORCH:
        raise InputError(f"{checkpoint.path}: is of {checkpoint.architecture}, which has no counterpart in Keras")
    target = _target(checkpoint, output, dtype, TARGETS[framework], force)
    metadata = read_metadata(checkpoint)
    weights = checkpoint.weights
    dtype = dtype or checkpoint.dtype

    def write(directory, cast):
        write_checkpoint_weights(directory, checkpoint.config, weights, framework, dtype, max_shard_size, cast)
        if target != checkpoint.directory:
            write_metadata(directory, metadata, dtype)
        elif not _has_own_code(checkpoint.stored):
            # So that the directory loads where this project is not installed.
            checkpoint.config.save_pretrained(directory)

    stale = TARGETS[framework].patterns if target == checkpoint.directory else STALE
    return write_conversion(checkpoint, target, weights, Casting(dtype, checkpoint.path), write, stale)


def _has_own_code(stored):
    """Whether a config.json, a dict, names this project's code, and none of others."""
    named = stored.get("auto_map")
    return isinstance(named, dict) and bool(named) and all(name in [*AUTO_MAP.values()] for name in named.values())


def write_conversion(source, target, weights, casting, write, stale):
    """Write what was converted, all at once or not at all.

    Args:
        source: `algpt2.checkpoints.checkpoint.Checkpoint`.
        target: `Path` of a directory.
        weights: dict of str to tensor, all that is going to be cast.
        casting: `algpt2.checkpoints.casting.Casting`.
        write: function of a directory and of a function as `casting`.
        stale: iterable of str, as in `algpt2.files.atomic.files_replaced_in`.

    Returns:
        `Conversion`.
    """
    with files_replaced_in(target, stale) as temporary, _with_progress(weights, casting) as cast:
        write(temporary, cast)
    return Conversion(source, target, casting.dtype.name, casting.error, casting.tensor)


@contextlib.contextmanager
def _with_progress(weights, casting):
    total = sum(tensor.nbytes for tensor in weights.values())
    with tqdm(desc="converting", total=total, unit="B", unit_scale=True, leave=False, delay=2, disable=None) as bar:

        def cast(name, piece):
            bar.update(piece.nbytes)
            return casting(name, piece)

        yield cast


def new_target(checkpoint, output, force):
    """The directory to write, which is apart from the source and empty, or a checkpoint that is to be replaced.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`, the source.
        output: path.
        force: bool. Whether to replace what is there already.

    Returns:
        `Path`.

    Raises:
        algpt2.errors.InputError: otherwise.
    """
    target = Path(output)
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is not a directory")
    resolved, source = target.resolve(), checkpoint.directory.resolve()
    if resolved == source:
        raise InputError(f"{target}: is the source as well as the target; give another --output")
    if resolved in source.parents or source in resolved.parents:
        raise InputError(f"{target}: the source {source} and the target contain one another; give another --output")
    if (target / ARGUMENTS_FILE).exists():
        raise InputError(f"{target}: is a run, which goes on with its own weights; give another --output")
    present = sorted(path.name for path in target.iterdir()) if target.exists() else []
    if present and not force:
        raise InputError(f"{target}: holds {present[0]} already; give --force to replace it, or another --output")
    if present:
        try:
            read_config(target)
        except InputError as error:
            raise InputError(f"{target}: holds no checkpoint to replace ({error}); give another --output") from error
    return target


def _target(checkpoint, output, dtype, kind, force):
    source = checkpoint.directory
    if output is not None and not (Path(output).exists() and Path(output).samefile(source)):
        return new_target(checkpoint, output, force)
    if dtype:
        raise InputError("--dtype makes another model; give it an --output of its own")
    if checkpoint.dialect not in own.DIALECTS:
        raise InputError(f"{source}: holds a checkpoint of {checkpoint.dialect.name}; give an --output of its own")
    if checkpoint.format.framework == kind.framework:
        raise InputError(f"{source}: is the source as well as the target; give another --output")
    present = [name for name in (kind.file, kind.index) if (source / name).exists()]
    if present and not force:
        raise InputError(f"{source}: holds {present[0]} already; give --force to replace it, or another --output")
    return source


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint has besides its weights: all of it is read before anything is written.

    Args:
        config: `ALGPT2Config`, or that of another system to be written.
        tokenizer: `transformers.PreTrainedTokenizerFast`, or `None`.
        generation: `transformers.GenerationConfig`.
        model_card: `Path`, or `None`.
    """

    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerFast | None
    generation: GenerationConfig
    model_card: Path | None


def read_metadata(checkpoint):
    """What a checkpoint has besides its weights.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.

    Returns:
        `Metadata`; its special tokens are those of the tokenizer, if there is one.

    Raises:
        algpt2.errors.InputError: if a file is damaged, or the tokenizer does not fit the model.
    """
    config, tokenizer = checkpoint.model_config(), checkpoint.tokenizer
    if tokenizer:
        # The code of a tokenizer's class stays behind; its files are those of a class of transformers.
        tokenizer.init_kwargs.pop("auto_map", None)
    card = checkpoint.directory / MODEL_CARD_FILE
    card = card if card.is_file() and leads_out(card, checkpoint.directory) is None else None
    return Metadata(config, tokenizer, checkpoint.generation_config(config), card)


def write_metadata(directory, metadata, dtype):
    """Write what a checkpoint has besides its weights.

    Args:
        directory: `Path` of an existing directory.
        metadata: `Metadata`.
        dtype: str. That of the weights.
    """
    metadata.config.dtype = dtype
    metadata.config.save_pretrained(directory)
    metadata.generation.save_pretrained(directory)
    if metadata.tokenizer:
        save_tokenizer(metadata.tokenizer, directory)
    if metadata.model_card:
        shutil.copyfile(metadata.model_card, directory / MODEL_CARD_FILE)
