"""Train ALGPT2 in TensorFlow: `python -m algpt2_tf.train --help`.

The path of a batch:
1. `prepare_run` reads the text, makes one stream of token ids of it, and cuts that into `Blocks` of `length` ids.
2. `TrainingOrder` derives the block of every sample from the seed alone, so that a resumed run has the same order.
3. `batches` is the `tf.data.Dataset` of them: `input_ids` and `labels`, int32 (batch, length), split over the replicas.
4. `TrainingModel`, under Keras's fit, calls the backbone of backbone.py on its part: embedding (batch, length, E),
   project_in (batch, length, H), the block of each depth, layer_norm, project_out (batch, length, E).
5. `next_token_loss` multiplies that by the embedding, some tokens at a time, and gives the loss of the next token: its
   share of the mean over all tokens of the step, wherever they are.
6. Gradients are summed over parts and replicas and clipped; the optimizer of optimization.py steps at the rate of its
   schedule.
7. `Reporter` sees every step: `History` prints and records, `evaluate_run` measures the held-out text.
8. `Checkpoints` takes weights, optimizer and random states, written aside and renamed when whole.
9. After the last step: weights, figure and model card into the run directory.
"""

import contextlib
import re
import sys

import keras
import tensorflow as tf

from algpt2.errors import InputError, RunError, exit_on_error
from algpt2.training.arguments import parse_train_arguments, train_parser
from algpt2.training.preparation import check_batch, prepare_run
from algpt2.training.run import finish_run, report_start
from algpt2.training.run_directory import writing_run
from algpt2.training.stop import StopRequest
from algpt2_tf.backbone import TFALGPT2Backbone
from algpt2_tf.devices import DTYPE_POLICIES, STRATEGIES, is_first, select_strategy, wait_for_everyone
from algpt2_tf.optimization import LossScaleOptimizer, WarmupSchedule, create_optimizer
from algpt2_tf.pretraining import language_model_class
from algpt2_tf.tfrecords import TFRecordBlocks, is_tfrecords
from algpt2_tf.training import Reporter, TrainingModel, batches
from algpt2_tf.training_state import load_training_state
from algpt2_tf.weights import assign_weights


def parser():
    """The command line: that of both frameworks, and `--strategy`."""
    result = train_parser("tensorflow", "Keras's fit")
    result.add_argument_group("devices").add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="single",
        help="one device; all GPUs of this machine (two logical CPU devices if there are not two); "
        "the machines of TF_CONFIG; or the TPU of TPU_NAME",
    )
    return result


def train(run, strategy):
    """Train a model on a prepared run and write it to the run directory.

    Args:
        run: `algpt2.training.run.Run`.
        strategy: `tf.distribute.Strategy`.

    Returns:
        `TFALGPT2LMHeadModel`, with `--sop` a `TFALGPT2ForPreTraining`.

    Raises:
        KeyboardInterrupt: if a stop was requested; a checkpoint is there.
    """
    arguments = run.arguments
    keras.utils.set_random_seed(arguments.seed)
    with strategy.scope():
        model = initial_model(run)
        schedule = WarmupSchedule(
            arguments.lr_schedule, arguments.learning_rate, run.warmup_steps, run.steps, run.decay_steps
        )
        optimizer = create_optimizer(
            arguments.optimizer, schedule, arguments.weight_decay, max_grad_norm=arguments.max_grad_norm
        )
        if arguments.precision == "fp16":
            optimizer = LossScaleOptimizer(optimizer)
        training_model = TrainingModel(model, arguments.gradient_accumulation)
        optimizer.build(model.trainable_variables)
        # XLA compiles the step on one device, but not the collective operations over several.
        jit_compile = "auto" if strategy.num_replicas_in_sync == 1 else False
        training_model.compile(optimizer=optimizer, jit_compile=jit_compile)
        if run.step:
            load_training_state(model, optimizer, run.checkpoints.path(run.step))
    report_start(run)
    # Several workers could not agree on the step to stop after.
    alone = strategy.cluster_resolver is None or not strategy.cluster_resolver.task_type
    with StopRequest() if alone else contextlib.nullcontext() as request:
        reporter = Reporter(run, model, schedule, strategy, request)
        if run.step < run.steps:
            verbose = 1 if sys.stdout.isatty() and run.is_first else 0
            training_model.fit(batches(run), shuffle=False, callbacks=[reporter], verbose=verbose)
    if reporter.stopped:
        raise KeyboardInterrupt
    if run.is_first:
        model.save_pretrained(run.directory)
        finish_run(run)
    wait_for_everyone(strategy)
    return model


def initial_model(run):
    """The model that a run starts or goes on with; to be called in the scope of the strategy."""
    backbone = TFALGPT2Backbone(
        run.config,
        dtype=DTYPE_POLICIES[run.arguments.precision],
        gradient_checkpointing=run.arguments.gradient_checkpointing,
    )
    model = language_model_class(run.arguments.sop)(backbone)
    weights = run.starting_weights()
    if weights:
        assign_weights(model, weights, source=run.directory)
    return model


def main(argv=None):
    command = parser()
    with exit_on_error(command.prog):
        arguments = parse_train_arguments(command, argv)
        strategy = select_strategy(arguments.strategy, arguments.device)
        check_batch(arguments, strategy.num_replicas_in_sync)
        with contextlib.ExitStack() as stack:
            run = _prepare(arguments, strategy, stack)
            if run.is_finished:
                if run.is_first:
                    finish_run(run)
                    print(f"{arguments.output_dir}: the run is finished")
                return
            _train(run, strategy)
        if run.is_first:
            print(f"wrote {arguments.output_dir}")


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
    fixed = ("validation", "tokenizer", "vocab_size", "text_column", "detokenize", "control_code")
    for name in fixed:
        if getattr(arguments, name):
            raise InputError(f"--{name.replace('_', '-')}: leave it out, the TFRecords have settled it")
    blocks = TFRecordBlocks(arguments.dataset)
    settled = {"length": blocks.length, "packing": blocks.packing, "eval_protocol": blocks.index["eval_protocol"]}
    for name, value in settled.items():
        if getattr(arguments, name) not in (None, "stream", value):
            raise InputError(f"--{name.replace('_', '-')} {getattr(arguments, name)}: the TFRecords have {value}")
        setattr(arguments, name, value)
    return blocks.tokenizer(), blocks, blocks.validation()


if __name__ == "__main__":
    main()
