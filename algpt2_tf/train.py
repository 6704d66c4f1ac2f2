"""Train ALGPT2 in TensorFlow: `python -m algpt2_tf.train --help`."""

import contextlib
import re
import sys

import keras
import numpy as np
import tensorflow as tf

from algpt2.checkpointing import StopRequest
from algpt2.devices import peak_flops
from algpt2.errors import InputError, RunError, exit_on_error
from algpt2.history import History, divergence
from algpt2.preparation import check_batch, prepare_run
from algpt2.run import evaluate_run, finish_run, report_start
from algpt2.train_arguments import parse_train_arguments, train_parser
from algpt2.weights import check_weights, parameter_count
from algpt2_tf.backbone import TFALGPT2Backbone
from algpt2_tf.causal_lm import TFALGPT2LMHeadModel
from algpt2_tf.evaluate import token_loss_function
from algpt2_tf.optimization import LossScaleOptimizer, WarmupSchedule, create_optimizer
from algpt2_tf.pretraining import TFALGPT2ForPreTraining
from algpt2_tf.strategies import STRATEGIES, is_first, select_strategy, wait_for_everyone
from algpt2_tf.tfrecords import TFRecordBlocks, is_tfrecords
from algpt2_tf.training import TrainingModel, batches
from algpt2_tf.training_state import load_training_state, save_training_state
from algpt2_tf.weights import assign_weights, canonical_weights

DTYPE_POLICIES = {"fp32": "float32", "bf16": "mixed_bfloat16", "fp16": "mixed_float16"}


def parser():
    """The command line: that of both frameworks, and `--strategy`."""
    result = train_parser("python -m algpt2_tf.train", "Train ALGPT2 in TensorFlow, with Keras's fit.", "tensorflow")
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
        run: `algpt2.run.Run`.
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
        # XLA compiles the step of one device; collective operations over several it does not take.
        jit_compile = "auto" if strategy.num_replicas_in_sync == 1 else False
        training_model.compile(optimizer=optimizer, jit_compile=jit_compile)
        if run.step:
            load_training_state(model, optimizer, run.checkpoints.path(run.step))
    report_start(run)
    # Several workers could not agree on the step to stop after.
    alone = strategy.cluster_resolver is None or not strategy.cluster_resolver.task_type
    with StopRequest() if alone else contextlib.nullcontext() as request:
        reporter = _Reporter(run, model, schedule, strategy, request)
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
    arguments = run.arguments
    model_class = TFALGPT2ForPreTraining if arguments.sop else TFALGPT2LMHeadModel
    backbone = TFALGPT2Backbone(
        run.config,
        dtype=DTYPE_POLICIES[arguments.precision],
        gradient_checkpointing=arguments.gradient_checkpointing,
    )
    model = model_class(backbone)
    source = run.checkpoints.path(run.step) if run.step else arguments.init_from
    if source:
        weights = canonical_weights(model_class.from_pretrained(source, dtype="float32", preprocessor=None))
        check_weights(run.config, weights, source=source)
        assign_weights(model, weights, source=source)
    return model


class _Reporter(keras.callbacks.Callback):
    """Writes the history, evaluates and saves at the intervals of the run, and when a stop is requested."""

    def __init__(self, run, model, schedule, strategy, request):
        super().__init__()
        self.run, self.trained, self.schedule, self.strategy, self.request = run, model, schedule, strategy, request
        self.history = History(run, machine_flops(run.arguments, strategy))
        self.report = _report_function(run) if run.is_first else lambda step, values: None
        language_model = model.language_model() if run.arguments.sop else model
        self.losses, self.orders = token_loss_function(language_model), order_function(model)
        self.stopped = False
        self._restart_means(run.step)

    def on_train_batch_end(self, batch, logs=None):
        run, arguments, step = self.run, self.run.arguments, self.run.step + batch + 1
        self.sums = {name: self.sums.get(name, 0.0) + np.asarray(value).item() for name, value in logs.items()}
        if batch == 0:
            # The first step compiles.
            self.history.restart_clock(step)
        is_last = step == run.steps
        self.stopped = bool(self.request and self.request.made and not is_last)
        saves = self.stopped or (arguments.save_steps and (step % arguments.save_steps == 0 or is_last))
        # A checkpoint begins new means, so that a resumed run records the same ones.
        if step % arguments.logging_steps == 0 or is_last or saves:
            means = {name: total / (step - self.mean_start) for name, total in self.sums.items()}
            # A step whose gradients overflow, in fp16, does not count for the schedule.
            learning_rate = float(self.schedule(self.model.optimizer.iterations - 1))
            self.report(step, self.history.log_train(step, means.pop("loss"), learning_rate, **means))
            self._restart_means(step)
        if step % arguments.eval_steps == 0 or is_last or saves:
            self.report(step, self.history.log_evaluation(step, *evaluate_run(run, self.losses, self.orders)))
            self.history.restart_clock(step)
        if saves:
            self._save(step)
            self.history.restart_clock(step)
        if self.stopped:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        if self.run.arguments.report_to == "wandb":
            import wandb

            wandb.finish()

    def _restart_means(self, step):
        self.sums, self.mean_start = {}, step

    def _save(self, step):
        run = self.run
        if not all(np.isfinite(weight).all() for weight in canonical_weights(self.trained).values()):
            raise divergence(step, "a weight is not finite")
        # Other workers hold the same, and go on when this one has written it.
        if run.is_first:
            with run.checkpoints.writing(step, self.history.evaluation_losses()) as directory:
                self.trained.save_pretrained(directory)
                run.tokenizer.save_pretrained(directory)
                save_training_state(self.trained, self.model.optimizer, step, directory)
        wait_for_everyone(self.strategy)


def _report_function(run):
    """A function from a step and its values to wandb or TensorBoard, as `--report-to` asks."""
    if run.arguments.report_to == "wandb":
        import wandb

        config = {**vars(run.arguments), "parameters": parameter_count(run.config)}
        wandb_run = wandb.init(dir=run.directory, config=config)
        return lambda step, values: wandb_run.log(values, step=step)
    if run.arguments.report_to == "tensorboard":
        writer = tf.summary.create_file_writer(str(run.directory / "tensorboard"))

        def write(step, values):
            with writer.as_default(step):
                for name, value in values.items():
                    tf.summary.scalar(name, value)
            writer.flush()

        write(0, {"parameters": parameter_count(run.config)})
        return write
    return lambda step, values: None


def order_function(model):
    """A compiled function from ids, int32 (batch, length), to the sentence orders that a model sees, int (batch,).

    Args:
        model: `TFALGPT2ForPreTraining`.
    """

    @tf.function(reduce_retracing=True)
    def compute(ids):
        logits = model({"token_ids": ids, "padding_mask": tf.ones_like(ids)}, training=False)["sop_logits"]
        return tf.argmax(logits, axis=-1)

    return lambda ids: compute(np.asarray(ids, dtype=np.int32)).numpy()


def machine_flops(arguments, strategy):
    """float: the floating-point operations a second that the devices of a run reach in a matrix product."""
    accelerated = bool(tf.config.get_visible_devices("GPU")) or arguments.strategy == "tpu"
    size = 8192 if accelerated else 512
    dtype = keras.DTypePolicy(DTYPE_POLICIES[arguments.precision]).compute_dtype
    matrix = tf.ones((size, size), dtype)

    def multiply():
        return float(tf.matmul(matrix, matrix)[0, 0])

    return peak_flops(multiply, size) * (strategy.num_replicas_in_sync if accelerated else 1)


def main(argv=None):
    command = parser()
    with exit_on_error(command.prog):
        arguments = parse_train_arguments(command, argv)
        strategy = select_strategy(arguments.strategy, arguments.device)
        check_batch(arguments, strategy.num_replicas_in_sync)
        run = _prepare(arguments, strategy)
        if run.is_finished:
            if run.is_first:
                finish_run(run)
                print(f"{arguments.output_dir}: the run is finished")
            return
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
        if run.is_first:
            print(f"wrote {arguments.output_dir}")


def _prepare(arguments, strategy):
    # The first worker makes the run directory, which the others then read.
    if is_first(strategy):
        try:
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
