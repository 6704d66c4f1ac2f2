"""A run of training in TensorFlow, from its arguments to its directory."""

import contextlib
import itertools
import re

import keras
import tensorflow as tf

from algpt2.cli import flag
from algpt2.errors import InputError, RunError
from algpt2.training.optimization import optimizer_constants
from algpt2.training.preparation import check_batch, prepare_run
from algpt2.training.run import best_weights, finish_run, finished, start_run
from algpt2.training.run_directory import writing_run
from algpt2.training.stop import StopRequest
from algpt2_tf.backbone import TFALGPT2Backbone
from algpt2_tf.devices import DTYPE_POLICIES, is_first, select_strategy, wait_for_everyone
from algpt2_tf.distillation import make_teacher
from algpt2_tf.optimization import LossScaleOptimizer, WarmupSchedule, create_optimizer
from algpt2_tf.pretraining import language_model_class
from algpt2_tf.quantization_aware import QuantizationAware
from algpt2_tf.text_classifier import TFALGPT2TextClassifier
from algpt2_tf.tfrecord_blocks import TFRecordBlocks, is_tfrecords
from algpt2_tf.training import ClassifierTrainingModel, Progress, Reporter, TrainingModel, batches
from algpt2_tf.training_state import load_training_state
from algpt2_tf.weights import assign_weights


def run(arguments):
    """Make or go on with a run.

    Args:
        arguments: `argparse.Namespace` of `algpt2.training.given_arguments.parse_train_arguments`.

    Raises:
        algpt2.errors.InputError: for anything wrong in the arguments or the data.
    """
    strategy = select_strategy(arguments.strategy, arguments.device, arguments.compile)
    replicas = strategy.num_replicas_in_sync
    if arguments.compile and replicas > 1:
        raise InputError(f"--compile: XLA compiles the step on one device, not over {replicas}; leave it out")
    check_batch(arguments, replicas)
    with contextlib.ExitStack() as stack:
        run = _prepare(arguments, strategy, stack)
        if run.is_finished:
            if run.is_first:
                finish_run(run)
                print(finished(run))
            return
        _train(run, strategy)
    if run.is_first:
        print(f"wrote {arguments.output_dir}")


def train(run, strategy):
    """Train a model on a prepared run and write it to the run directory.

    Args:
        run: `algpt2.training.run.Run`.
        strategy: `tf.distribute.Strategy`.

    Returns:
        `TFALGPT2LMHeadModel`, with `--sop` a `TFALGPT2ForPreTraining`; or a `TFALGPT2TextClassifier`.

    Raises:
        KeyboardInterrupt: if a stop was requested; a checkpoint is there.
    """
    arguments = run.arguments
    with strategy.scope():
        # Before the seed is set, so that the model starts as it would without a teacher.
        teacher = make_teacher(run)
        keras.utils.set_random_seed(arguments.seed)
        model = initial_model(run)
        schedule = WarmupSchedule(
            arguments.lr_schedule, arguments.learning_rate, run.warmup_steps, run.steps, run.decay_steps
        )
        optimizer = create_optimizer(
            arguments.optimizer,
            schedule,
            arguments.weight_decay,
            max_grad_norm=arguments.max_grad_norm,
            constants=optimizer_constants(arguments),
        )
        if arguments.precision == "fp16":
            optimizer = LossScaleOptimizer(optimizer)
        training_class = TrainingModel if run.measures_perplexity else ClassifierTrainingModel
        configs = map(run.depths.config, itertools.count(run.step)) if run.depths else None
        rounding = QuantizationAware(model) if arguments.quantize else None
        training_model = training_class(model, arguments.gradient_accumulation, teacher, configs, rounding)
        optimizer.build(model.trainable_variables)
        # XLA compiles the step on one device, but not the collective operations over several. By itself Keras compiles
        # on GPUs only.
        jit_compile = (arguments.compile or "auto") if strategy.num_replicas_in_sync == 1 else False
        training_model.compile(optimizer=optimizer, jit_compile=jit_compile)
        if run.step:
            load_training_state(model, optimizer, run.checkpoints.path(run.step))
    start_run(run)
    # Several workers could not agree on the step to stop after.
    alone = strategy.cluster_resolver is None or not strategy.cluster_resolver.task_type
    with StopRequest() if alone else contextlib.nullcontext() as request:
        reporter = Reporter(run, model, schedule, strategy, request, teacher, rounding)
        if run.step < run.steps and not reporter.history.has_stopped_improving():
            # The bar of `fit` and the lines of the history would write over each other.
            callbacks = [reporter, *([Progress(run)] if run.is_first else [])]
            training_model.fit(batches(run), shuffle=False, callbacks=callbacks, verbose=0)
    if reporter.stopped:
        raise KeyboardInterrupt
    best = best_weights(run, reporter.history.evaluation_losses())
    if best:
        assign_weights(model, best)
    if rounding:
        rounding.round()
    if run.is_first:
        model.save_pretrained(run.directory)
        finish_run(run)
    wait_for_everyone(strategy)
    return model


def initial_model(run):
    """The model that a run starts or goes on with; to be called in the scope of the strategy."""
    weights = run.starting_weights()
    backbone = TFALGPT2Backbone(
        run.config,
        dtype=DTYPE_POLICIES[run.arguments.precision],
        gradient_checkpointing=run.arguments.gradient_checkpointing,
    )
    classifies = run.arguments.task == "classify"
    model = (TFALGPT2TextClassifier if classifies else language_model_class(run.arguments.sop))(backbone)
    if weights:
        assign_weights(model, weights, source=run.directory)
    return model


def _train(run, strategy):
    try:
        train(run, strategy)
    except tf.errors.InvalidArgumentError as error:
        # An error in the input pipeline, which TensorFlow reports with its whole traceback.
        found = re.search(r"algpt2\.errors\.InputError: (.*)", str(error))
        if not found:
            raise
        raise InputError(found[1]) from error
    except (tf.errors.UnavailableError, tf.errors.InternalError, tf.errors.AbortedError) as error:
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
        raise RunError(
            f"another worker is gone ({error.message.splitlines()[0]}); start all workers again with --resume"
        ) from error


def _prepare(arguments, strategy, stack):
    # The first worker makes the run directory, which the others then read.
    if is_first(strategy):
        try:
            stack.enter_context(writing_run(arguments.output_dir))
            run = prepare_run(arguments, data=_packed(arguments))
        except InputError:
            wait_for_everyone(strategy, succeeded=False)
            raise
        wait_for_everyone(strategy)
        return run
    wait_for_everyone(strategy)
    return prepare_run(arguments, is_first=False, data=_packed(arguments))


def _packed(arguments):
    """The tokenizer, blocks and validation text of `--dataset`, if it holds TFRecords."""
    if not is_tfrecords(arguments.dataset):
        return None
    fixed = ("validation", "tokenizer", "vocab_size", "text_column", "streaming", "detokenize", "control_code")
    for name in fixed:
        if getattr(arguments, name):
            raise InputError(f"{flag(name)}: leave it out, the TFRecords have settled it")
    blocks = TFRecordBlocks(arguments.dataset)
    settled = {"length": blocks.length, "packing": blocks.packing, "eval_protocol": blocks.eval_protocol}
    for name, value in settled.items():
        if getattr(arguments, name) not in (None, "stream", value):
            raise InputError(f"{flag(name)} {getattr(arguments, name)}: the TFRecords have {value}")
        setattr(arguments, name, value)
    return blocks.tokenizer(), blocks, blocks.validation()
