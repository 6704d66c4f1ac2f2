"""Carry a run over to the other framework, with its training state, so that training goes on there."""

import argparse
import contextlib
import shlex
from dataclasses import dataclass
from pathlib import Path

import algpt2_pt.models
import algpt2_pt.train
import algpt2_tf.pretraining
import algpt2_tf.train
from algpt2.checkpoints.checkpoint import Checkpoint, open_checkpoint
from algpt2.data.tokenizer import save_tokenizer
from algpt2.errors import InputError
from algpt2.imports.frameworks import FRAMEWORKS
from algpt2.tables import markdown_table
from algpt2.training.checksums import write_checksums
from algpt2.training.given_arguments import read_arguments
from algpt2.training.history import read_history, write_history
from algpt2.training.run_directory import (
    BEST,
    CHECKPOINT,
    HISTORY_FILE,
    Checkpoints,
    new_run_directory,
    require_free,
    require_undamaged,
    run_sources,
)
from algpt2.training.state import TrainingState, moment_shapes
from algpt2_pt.training_state import read_training_state as read_pt_state
from algpt2_pt.training_state import write_training_state as write_pt_state
from algpt2_pt.weights import to_torch
from algpt2_tf import TFALGPT2Backbone
from algpt2_tf.tfrecord_blocks import is_tfrecords
from algpt2_tf.training_state import read_training_state as read_tf_state
from algpt2_tf.training_state import write_training_state as write_tf_state
from algpt2_tf.weights import assign_weights


@dataclass(frozen=True)
class CarriedRun:
    """A run that was carried over.

    Args:
        source: `algpt2.checkpoints.checkpoint.Checkpoint` that it was taken from.
        checkpoint: `Path`. The checkpoint to go on from, in a run directory of the other framework.
        arguments: `argparse.Namespace`, those of the new run.
        state: `algpt2.training.state.TrainingState`.
    """

    source: Checkpoint
    checkpoint: Path
    arguments: argparse.Namespace
    state: TrainingState


def pt2tf_run(directory, output, force=False):
    """Make a TensorFlow run that goes on from a checkpoint of a PyTorch run.

    Args:
        directory: path of a run, for its newest checkpoint, or of one of its checkpoints.
        output: path of the new run.
        force: bool. Whether to replace a run that is there already.

    Returns:
        `CarriedRun`.

    Raises:
        InputError: if anything cannot be read or does not fit, or the output is there already or cannot be written.

    Example:
        >>> pt2tf_run("runs/pt", output="runs/tf")  # doctest: +SKIP
    """
    # Not before algpt2_tf, which sets it up.
    import keras

    source, recorded = _find(directory, algpt2_pt.train.parser())
    config, weights = source.config, source.read_weights()
    state = read_pt_state(source.directory, _pytorch_model(config, weights, recorded.sop), recorded)
    carried = _carried(source, recorded, state, algpt2_tf.train.parser(), output, force)
    with _new_checkpoint(carried) as checkpoint:
        # Dropout starts as in a new run of this seed.
        keras.utils.set_random_seed(recorded.seed)
        model = algpt2_tf.pretraining.language_model_class(recorded.sop)(TFALGPT2Backbone(config, dtype="float32"))
        assign_weights(model, weights, source=source.path)
        model.save_pretrained(checkpoint)
        write_tf_state(state, model, checkpoint)
    return carried


def tf2pt_run(directory, output, force=False):
    """Make a PyTorch run that goes on from a checkpoint of a TensorFlow run.

    Args:
        directory, output, force: as in `pt2tf_run`.

    Returns:
        `CarriedRun`.

    Raises:
        InputError: as in `pt2tf_run`, or if the data of the run are TFRecords, which PyTorch does not read.

    Example:
        >>> tf2pt_run("runs/tf", output="runs/pt")  # doctest: +SKIP
    """
    source, recorded = _find(directory, algpt2_tf.train.parser())
    if is_tfrecords(recorded.dataset):
        run = source.directory.parent
        raise InputError(f"{run}: was trained on TFRecords, which PyTorch does not read; resume it there")
    weights = source.read_weights()
    shapes = {name: array.shape for name, array in weights.items()}
    state, _ = read_tf_state(source.directory, moment_shapes(recorded.optimizer, shapes))
    carried = _carried(source, recorded, state, algpt2_pt.train.parser(), output, force)
    with _new_checkpoint(carried) as checkpoint:
        model = _pytorch_model(source.config, weights, recorded.sop)
        model.save_pretrained(checkpoint)
        write_pt_state(state, checkpoint, model, carried.arguments)
    return carried


def summary(carried):
    """What was carried over, as a Markdown table, and how to go on.

    Args:
        carried: `CarriedRun`.

    Returns:
        str, without a line end.
    """
    arguments, state = carried.arguments, carried.state
    moments = sorted({name.rpartition(".")[2] for name in state.moments})
    rows = {
        "step": f"{state.step} of {arguments.steps}",
        "optimizer": f"{arguments.optimizer}, {state.iterations} updates",
        "moments": f"{len(state.moments)}: {', '.join(moments)}",
        "schedule": f"{arguments.lr_schedule}, {arguments.warmup_steps} warm-up steps",
        "seed": f"{arguments.seed}: the order of the data; dropout draws anew from it",
    }
    if state.loss_scale:
        rows["loss scale"] = f"{state.loss_scale[0]:g}"
    package = FRAMEWORKS[arguments.framework].package
    command = f"python -m {package}.train --output-dir {shlex.quote(arguments.output_dir)} --resume"
    return f"{markdown_table([('', 'carried over'), *rows.items()])}\n\ngo on with: {command}"


def _find(directory, parser):
    """The checkpoint to carry over, opened, and the arguments of its run."""
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such directory; give a run of train, or one of its checkpoints")
    # The best checkpoint is a link.
    if CHECKPOINT.fullmatch(directory.resolve().name):
        source = directory.resolve()
        arguments = read_arguments(source.parent, parser)
    else:
        arguments, checkpoints = read_arguments(directory, parser), Checkpoints(directory)
        if not checkpoints.steps():
            raise InputError(
                f"{directory}: holds no checkpoint-STEP, and so no training state; train it with --save-steps"
            )
        source = checkpoints.path(checkpoints.latest())
    if arguments.task != "language-model":
        raise InputError(f"{directory}: was trained with --task {arguments.task}; resume it in its own framework")
    require_undamaged(source)
    return open_checkpoint(source, arguments.framework), arguments


def _carried(source, recorded, state, parser, output, force):
    """The run to make, if it may be made there, with the arguments that a parser knows."""
    output = Path(output)
    hint = "give another --output, or --force to replace it"
    require_free(output, "--output", {**run_sources(recorded), "the conversion": source.directory}, force, hint)
    # Arguments that only the old framework has are left out; those that only the new one has take their defaults.
    arguments = vars(parser.parse_args([]))
    kept = arguments.keys() & vars(recorded).keys() - {"framework"}
    arguments |= {name: getattr(recorded, name) for name in kept} | {"output_dir": str(output)}
    return CarriedRun(source, Checkpoints(output).path(state.step), argparse.Namespace(**arguments), state)


@contextlib.contextmanager
def _new_checkpoint(carried):
    """The checkpoint of a new run, to write weights and training state into."""
    run, step = carried.checkpoint.parent, carried.state.step
    source, tokenizer = carried.source, carried.source.require_tokenizer()
    records = [record for record in read_history(source.directory.parent / HISTORY_FILE) if record["step"] <= step]
    with new_run_directory(run, carried.arguments, source.config, tokenizer) as new:
        write_history(new / HISTORY_FILE, records)
        checkpoint = new / carried.checkpoint.name
        checkpoint.mkdir()
        save_tokenizer(tokenizer, checkpoint)
        yield checkpoint
        write_checksums(checkpoint)
        (new / BEST).symlink_to(checkpoint.name)


def _pytorch_model(config, weights, sop):
    model = algpt2_pt.models.language_model_class(sop)(config)
    # A tied head is not among the weights.
    model.load_state_dict({name: to_torch(array) for name, array in weights.items()}, strict=False)
    return model
