"""Any checkpoint as a smaller ALGPT2 that computes about the same, to be trained on from there."""

import contextlib
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from algpt2.checkpoints.casting import Casting
from algpt2.checkpoints.checkpoint import open_checkpoint, write_checkpoint_weights
from algpt2.data.packing import block_length
from algpt2.errors import InputError
from algpt2.evaluation.perplexity import evaluate, validation_text
from algpt2.imports.frameworks import installed_frameworks
from convert.compression import TOKENS
from convert.compression.calibration import calibration_rows, input_moments
from convert.compression.errors import Errors, error_table, relative_errors
from convert.compression.model import compressed, compressed_config, shared_depths
from convert.conversion import STALE, Conversion, new_target, read_metadata, write_conversion, write_metadata
from convert.sources import opened_source


@dataclass(frozen=True)
class Compression:
    """What was written, and how near it is to its source.

    Args:
        conversion: `convert.conversion.Conversion`.
        errors: `convert.compression.errors.Errors`.
        calibration_tokens: int. The tokens that said which inputs count; 0 without such a text.
        perplexities: list of two `algpt2.evaluation.perplexity.Evaluation`, before and after; `None` without a text.
    """

    conversion: Conversion
    errors: Errors
    calibration_tokens: int
    perplexities: list | None

    def summary(self):
        """str: the table of errors, and below it the rest."""
        lines = [error_table(self.errors), ""]
        shares = [f"{name} {error:.4f}" for name, error in self.errors.embeddings.items()]
        lines.append(f"relative errors of the embeddings: {', '.join(shares)}")
        before, after = self.errors.parameters
        lines.append(f"parameters: {before:,} before, {after:,} after, {after / before:.1%}")
        if after >= before:
            lines.append("it is not smaller; a smaller --depth-lora-rank or --embedding-size makes it so")
        if self.calibration_tokens:
            lines.append(f"calibrated on {self.calibration_tokens:,} tokens")
        if self.perplexities:
            before, after = self.perplexities
            lines.append(
                f"perplexity ({before.name}, {before.tokens} tokens): {before.perplexity:.4f} before, "
                f"{after.perplexity:.4f} after"
            )
        return "\n".join(lines)


def compress(
    source,
    output,
    sharing,
    embedding_size=None,
    init="average",
    calibration=None,
    calibration_tokens=TOKENS,
    dataset=None,
    length=None,
    dtype=None,
    force=False,
    max_shard_size="5GB",
    base=None,
    **depths,
):
    """Write a smaller ALGPT2 that starts as near to a checkpoint as its size allows.

    No framework is needed but for the perplexities. Values go from file to file, one block at a time.

    Args:
        source, base: as in `convert.sources.opened_source`.
        output: path of a new directory, which gets safetensors.
        sharing, embedding_size, **depths: as in `convert.compression.model.compressed_config`.
        init: as in `convert.compression.model.compressed`.
        calibration: str, a text as `--dataset`, whose training part says which inputs count; `None` for all alike.
        calibration_tokens: int. How many of its first tokens are read.
        dataset: str. A text to measure the perplexity on, before and after; `None` measures none.
        length: int. The tokens of a row of both texts; `None` means `n_positions`.
        dtype: str, one of `algpt2.checkpoints.formats.lazy_tensor.DTYPES`; by default that of the source.
        force, max_shard_size: as in `convert.conversion.pt2tf`.

    Returns:
        `Compression`.

    Raises:
        algpt2.errors.InputError: if anything cannot be read or written, does not fit, or would have no effect.

    Example:
        >>> compress("gpt2/", "small/", "cycle:3", embedding_size=256, depth_lora_rank=64)  # doctest: +SKIP
    """
    if dataset and not installed_frameworks():
        raise InputError("--dataset needs PyTorch or TensorFlow; install one of them, or leave --dataset out")
    checkpoint = opened_source(source, base)
    if not checkpoint.is_language_model:
        raise InputError(
            f"{checkpoint.path}: is of {checkpoint.architecture}; give a language model, to train it after"
        )
    target = new_target(checkpoint, output, force)
    metadata = read_metadata(checkpoint)
    config = compressed_config(metadata.config, sharing, embedding_size, **depths)
    config.architectures = ["ALGPT2LMHeadModel"]
    _require_effect(metadata.config, config, init, calibration)
    text = validation_text(checkpoint, dataset, length) if dataset else None
    dtype = dtype or checkpoint.dtype
    with contextlib.ExitStack() as stack:
        moments, rows = None, np.empty(0)
        if calibration:
            rows = calibration_rows(checkpoint, calibration, calibration_tokens, block_length(length, config))
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="algpt2-")))
            moments = input_moments(checkpoint.config, checkpoint.weights, rows, shared_depths(config), folder)
        weights = compressed(checkpoint.config, checkpoint.weights, config, init, moments)

        def write(directory, cast):
            write_checkpoint_weights(directory, config, weights, "pytorch", dtype, max_shard_size, cast)
            write_metadata(directory, replace(metadata, config=config), dtype)

        casting = Casting(dtype, checkpoint.path)
        conversion = write_conversion(checkpoint, target, weights, casting, write, STALE)
        written = open_checkpoint(target)
        errors = relative_errors(checkpoint.config, checkpoint.weights, config, written.weights, moments)
    perplexities = text and [_evaluation(found, *text) for found in (checkpoint, written)]
    return Compression(conversion, errors, rows.size, perplexities)


def _require_effect(old, new, init, calibration):
    """Raise an InputError for what would have no effect."""
    shares = new.n_block < new.n_layer
    options = {
        "--depth-norms": new.depth_norms,
        "--depth-biases": new.depth_biases,
        "--depth-lora-rank": new.depth_lora_rank,
        f"--init {init}": init != "average",
        "--calibration": calibration,
    }
    given = [name for name, value in options.items() if value]
    if given and not shares:
        raise InputError(f"{given[0]} is for shared blocks, and this --sharing shares none; leave it out")
    if init == "svd" and not new.depth_lora_rank:
        raise InputError("--init svd fits the additions of depths, and there are none; give a --depth-lora-rank")
    if not shares and new.embedding_size == old.embedding_size:
        raise InputError("nothing would be compressed; give another --sharing, or an --embedding-size")


def _evaluation(checkpoint, text, length):
    from convert.sides import open_side

    # One framework for both, so that they differ by nothing but their weights.
    side = open_side(checkpoint.without_heads(), "float32", installed_frameworks()[0])
    return evaluate(side.token_losses, text, length, batch_size=8, progress=True)
