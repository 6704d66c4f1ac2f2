"""Train ALGPT2 in TensorFlow: `python -m algpt2_tf.train --help`."""

import sys

import keras
import tensorflow as tf

from algpt2.errors import InputError, exit_on_error
from algpt2.evaluation import evaluate
from algpt2.run import History, prepare_run, train_parser
from algpt2_tf.backbone import TFALGPT2Backbone
from algpt2_tf.causal_lm import TFALGPT2LMHeadModel
from algpt2_tf.evaluate import token_loss_function
from algpt2_tf.optimization import AdamW, WarmupSchedule


def parser():
    """The command line: that of both frameworks, and `--strategy`."""
    result = train_parser("python -m algpt2_tf.train", "Train ALGPT2 in TensorFlow, with Keras's fit.")
    result.add_argument_group("devices").add_argument(
        "--strategy",
        choices=("single", "mirrored"),
        default="single",
        help="one device, or MirroredStrategy over all GPUs (over two logical CPU devices if there are not two GPUs)",
    )
    return result


def select_strategy(name):
    """The distribution strategy of a run; to be called before TensorFlow has started its devices.

    Args:
        name: str. `"single"` or `"mirrored"`.

    Returns:
        `tf.distribute.Strategy`.
    """
    if name == "single":
        return tf.distribute.get_strategy()
    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) >= 2:
        print(f"MirroredStrategy over {len(gpus)} GPUs")
        return tf.distribute.MirroredStrategy()
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    print(
        f"found {len(gpus)} GPUs, not two: MirroredStrategy over two logical devices of this CPU, "
        "which computes the same but is no faster",
        flush=True,
    )
    # The default, collective operations, breaks where one process makes a second strategy.
    reduction = tf.distribute.ReductionToOneDevice()
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"], cross_device_ops=reduction)


def train(run, strategy):
    """Train a model on a prepared run and write it to the run directory.

    Args:
        run: `algpt2.run.Run`.
        strategy: `tf.distribute.Strategy`.

    Returns:
        `TFALGPT2LMHeadModel`.
    """
    keras.utils.set_random_seed(run.arguments.seed)
    with strategy.scope():
        model = TFALGPT2LMHeadModel(TFALGPT2Backbone(run.config))
        schedule = WarmupSchedule(run.arguments.lr_schedule, run.arguments.learning_rate, run.warmup_steps, run.steps)
        compile_for_training(model, schedule, run.arguments.weight_decay, run.arguments.max_grad_norm)
    verbose = 1 if sys.stdout.isatty() else 0
    model.fit(batches(run), shuffle=False, callbacks=[_Reporter(run, schedule)], verbose=verbose)
    model.save_pretrained(run.directory)
    return model


def compile_for_training(model, learning_rate, weight_decay, max_grad_norm):
    """Compile a model with AdamW and the mean next-token loss; call it in the scope of the strategy.

    Args:
        model: `TFALGPT2LMHeadModel`.
        learning_rate: float or `keras.optimizers.schedules.LearningRateSchedule`.
        weight_decay: float. Not applied to biases and layer norms.
        max_grad_norm: float. The norm of all gradients together that they are clipped to.
    """
    optimizer = AdamW(learning_rate, weight_decay=weight_decay, max_grad_norm=max_grad_norm)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[],
    )


def batches(run):
    """The batches of a run in their order, as `(inputs, next tokens)`.

    Args:
        run: `algpt2.run.Run`.

    Returns:
        `tf.data.Dataset`.
    """

    def gather(samples):
        ids = tf.numpy_function(
            lambda indices: run.blocks.rows(run.order[indices])[0], [samples], tf.int32, stateful=False
        )
        ids = tf.ensure_shape(ids, [run.arguments.batch_size, run.length])
        return {"token_ids": ids[:, :-1], "padding_mask": tf.ones_like(ids[:, :-1])}, ids[:, 1:]

    samples = tf.data.Dataset.range(len(run.order))
    return samples.batch(run.arguments.batch_size).map(gather).prefetch(tf.data.AUTOTUNE)


def _report_function(run):
    """A function from a step and its values to wandb or TensorBoard, as `--report-to` asks."""
    if run.arguments.report_to == "wandb":
        import wandb

        wandb_run = wandb.init(dir=run.directory, config=vars(run.arguments))
        return lambda step, values: wandb_run.log(values, step=step)
    if run.arguments.report_to == "tensorboard":
        writer = tf.summary.create_file_writer(str(run.directory / "tensorboard"))

        def write(step, values):
            with writer.as_default(step):
                for name, value in values.items():
                    tf.summary.scalar(name, value)
            writer.flush()

        return write
    return lambda step, values: None


class _Reporter(keras.callbacks.Callback):
    """Writes the history, evaluates and saves at the intervals of the run."""

    def __init__(self, run, schedule):
        super().__init__()
        self.run, self.schedule = run, schedule
        self.history = History(run)
        self.report = _report_function(run)

    def on_train_begin(self, logs=None):
        self.losses = token_loss_function(self.model)

    def on_train_batch_end(self, batch, logs=None):
        run, step = self.run, batch + 1
        if step == 1:
            # The first step compiles.
            self.history.restart_clock(1)
        if step % run.arguments.logging_steps == 0 or step == run.steps:
            self.report(step, self.history.log_train(step, float(logs["loss"]), float(self.schedule(step - 1))))
            if step < run.steps:
                # Keras's loss is the mean since the last reset.
                self.model.reset_metrics()
        if step % run.arguments.eval_steps == 0 or step == run.steps:
            result = evaluate(self.losses, run.validation, run.length, run.arguments.batch_size)
            self.report(step, self.history.log_evaluation(step, result))
            self.history.restart_clock(step)
        if run.arguments.save_steps and step % run.arguments.save_steps == 0 and step < run.steps:
            checkpoint = run.directory / f"checkpoint-{step}"
            self.model.save_pretrained(checkpoint)
            run.tokenizer.save_pretrained(checkpoint)
            self.history.restart_clock(step)

    def on_train_end(self, logs=None):
        self.history.draw()


def main(argv=None):
    command = parser()
    arguments = command.parse_args(argv)
    with exit_on_error(command.prog):
        strategy = select_strategy(arguments.strategy)
        if arguments.batch_size % strategy.num_replicas_in_sync:
            raise InputError(
                f"--batch-size {arguments.batch_size} must be divisible by {strategy.num_replicas_in_sync} replicas"
            )
        train(prepare_run(arguments), strategy)
        print(f"wrote {arguments.output_dir}")


if __name__ == "__main__":
    main()
