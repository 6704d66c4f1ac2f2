"""The training step of Keras's fit: the loss over all tokens of a step, on any number of replicas, in any parts."""

import contextlib
import functools

import keras
import numpy as np
import tensorflow as tf
from tqdm.auto import tqdm

from algpt2.checkpoints.weights import parameter_count
from algpt2.configuration import at_depth_of
from algpt2.data.tokenizer import save_tokenizer
from algpt2.training.classification import evaluate_classes
from algpt2.training.history import History, divergence
from algpt2.training.run import evaluate_run, evaluate_tokens
from algpt2_tf.devices import machine_flops, on_any_worker, wait_for_everyone
from algpt2_tf.evaluation import class_logits_function, order_function, token_loss_function
from algpt2_tf.loss import counted, next_token_loss
from algpt2_tf.training_state import save_training_state
from algpt2_tf.weights import canonical_weights


class TrainingModel(keras.Model):
    """Trains a language model under `fit`, with the mathematics of transformers' Trainer.

    The loss of a step is the mean over all its tokens that count, wherever they are: Keras's own step takes the mean
    over those of each replica first, and its gradient accumulation does not work under distribution strategies.

    Args:
        model: `TFALGPT2LMHeadModel`; a `TFALGPT2ForPreTraining` learns the sentence order too.
        parts: int. How many parts the batch of a replica is computed in, one after the other.
        teacher: `algpt2_tf.distillation.Teacher` whose distribution it learns too, or `None`.
        configs: iterator over an `ALGPT2Config` for each step, whose depth it is made at; `None` means the model's own.
        rounding: `algpt2_tf.quantization_aware.QuantizationAware` that it is trained for, or `None`.

    Call arguments:
        as of `model`.
    """

    def __init__(self, model, parts=1, teacher=None, configs=None, rounding=None):
        super().__init__()
        self.model, self.parts, self.teacher, self.configs = model, parts, teacher, configs
        self.rounding = rounding
        self._at_depth = None
        self.built = True

    def call(self, inputs, training=None):
        return self.model(inputs, training=training)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Model and optimizer are built already; to build them, Keras would average token ids over replicas, which
        # several workers cannot do.
        pass

    def make_train_function(self, force=False):
        """As in Keras; for steps of several depths with a function for each, compiled when its depth first comes."""
        make, functions, backbone = super().make_train_function, {}, self.model.backbone
        if self.configs is None:
            return make(force)

        def train_function(iterator):
            config = next(self.configs)
            with at_depth_of(backbone.config, config):
                if config.n_layer not in functions:
                    make(force=True)
                    # A function, since Keras would take a model for one more layer of this one.
                    states = functools.partial(backbone.at_depth(config), training=True)
                    functions[config.n_layer], self.train_function = (self.train_function, states), train_function
                function, self._at_depth = functions[config.n_layer]
                return function(iterator)

        self.train_function = train_function

    def train_step(self, data):
        """One optimizer step.

        Args:
            data: dict of int32 arrays, `input_ids` and `labels` (batch, length), -100 where ignored, and
                `sentence_order_label` (batch,) if the model learns it.

        Returns:
            dict of `loss` and, if learned, `sop_loss`, which is not in it, and with a teacher `lm_loss` and
            `distill_loss`, which are; float (1,), the means over the step.
        """
        context = tf.distribute.get_replica_context()
        # Those of the whole step, which the summed losses are divided by.
        counts = context.all_reduce(tf.distribute.ReduceOp.SUM, self._counts(data))
        split = {name: tf.reshape(value, [self.parts, -1, *value.shape[1:]]) for name, value in data.items()}
        variables = self.trainable_variables
        exact = self.rounding and self.rounding.round()

        def part_of(index):
            return self._gradients({name: value[index] for name, value in split.items()}, counts, variables)

        def add_part(index, sums):
            return index + 1, [a + b for a, b in zip(sums, part_of(index), strict=True)]

        total = part_of(0)
        if self.parts > 1:
            # One part after the other: parts computed at once would take the memory of the whole.
            _, total = tf.while_loop(
                lambda index, _: index < self.parts, add_part, (tf.constant(1), total), parallel_iterations=1
            )
        losses, gradients = total[0], total[1:]
        if exact:
            self.rounding.assign(exact)
        # Keras sums the gradients of the replicas.
        self.optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))
        losses = context.all_reduce(tf.distribute.ReduceOp.SUM, losses)
        names = ["loss", *(["sop_loss"] if "sentence_order_label" in data else [])]
        names += ["lm_loss", "distill_loss"] if self.teacher else []
        return {name: losses[index : index + 1] for index, name in enumerate(names)}

    def _counts(self, data):
        """The sequences, and the tokens that count."""
        tokens = tf.reduce_sum(tf.cast(counted(data["labels"][:, 1:]), "float32"))
        return [tf.cast(tf.shape(data["labels"])[0], "float32"), tokens]

    def _gradients(self, data, counts, variables):
        sequences, tokens = counts
        inputs = {"token_ids": data["input_ids"], "padding_mask": tf.ones_like(data["input_ids"])}
        soft = self.teacher and self.teacher.soft_targets(inputs)
        with tf.GradientTape() as tape:
            learns_order = "sentence_order_label" in data
            if self._at_depth:
                hidden_states, states = self._at_depth(inputs)
            elif learns_order:
                hidden_states, states = self.model.both_states(inputs, training=True)
            else:
                states = self.model.backbone(inputs, training=True)
            loss, parts = next_token_loss(self.model, states, data["labels"], soft)
            # A step without a token that counts changes nothing.
            losses = [tf.math.divide_no_nan(loss, tokens)]
            if learns_order:
                logits = self.model.sop_classifier(hidden_states, inputs["padding_mask"])
                order = tf.nn.sparse_softmax_cross_entropy_with_logits(
                    data["sentence_order_label"], tf.cast(logits, "float32")
                )
                losses.append(tf.reduce_sum(order) / sequences)
            loss = self.optimizer.scale_loss(tf.add_n(losses))
        gradients = tape.gradient(loss, variables)
        if self._at_depth:
            # Some of what belongs to single depths is not used at another one.
            pairs = zip(gradients, variables, strict=True)
            gradients = [tf.zeros_like(variable.value) if g is None else g for g, variable in pairs]
        if soft:
            losses += tf.unstack(tf.math.divide_no_nan(parts, tokens))
        return [tf.stack(losses), *(tf.convert_to_tensor(gradient) for gradient in gradients)]


class ClassifierTrainingModel(TrainingModel):
    """As `TrainingModel`, of a classifier of texts; the loss of a step is the mean over its texts.

    Args:
        model: `TFALGPT2TextClassifier`. Its data are `input_ids` and `attention_mask` (batch, length), `labels`
            (batch,).
        parts: as in `TrainingModel`.
    """

    @property
    def trainable_variables(self):
        return self.model.trainable_variables

    def _counts(self, data):
        return [tf.cast(tf.shape(data["labels"])[0], "float32")]

    def _gradients(self, data, counts, variables):
        with tf.GradientTape() as tape:
            inputs = {"token_ids": data["input_ids"], "padding_mask": data["attention_mask"]}
            logits = tf.cast(self.model(inputs, training=True), "float32")
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(data["labels"], logits)
            mean = tf.reduce_sum(losses) / counts[0]
            loss = self.optimizer.scale_loss(mean)
        gradients = tape.gradient(loss, variables)
        return [mean[None], *(tf.convert_to_tensor(gradient) for gradient in gradients)]


def batches(run):
    """The batches of a run in their order, from its step on.

    Args:
        run: `algpt2.training.run.Run`.

    Returns:
        `tf.data.Dataset` of dicts, as `TrainingModel.train_step` takes them.
    """
    batch_size = run.arguments.batch_size
    shapes = {name: array.shape[1:] for name, array in run.samples([0]).items()}

    def gather(indices):
        arrays = tf.numpy_function(
            lambda samples: list(run.samples(samples).values()), [indices], [tf.int32] * len(shapes), stateful=False
        )
        return {
            name: tf.ensure_shape(array, [batch_size, *shape])
            for (name, shape), array in zip(shapes.items(), arrays, strict=True)
        }

    samples = tf.data.Dataset.range(run.step * batch_size, len(run.order)).batch(batch_size)
    options = tf.data.Options()
    # Each worker takes its part of every batch.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    # Else TensorFlow's tuning thread holds up the end of `fit`, by up to a minute after long runs.
    options.autotune.enabled = False
    return samples.map(gather).prefetch(2).with_options(options)


class Reporter(keras.callbacks.Callback):
    """Writes the history, evaluates and saves at the intervals of the run, and when a stop is requested."""

    def __init__(self, run, model, schedule, strategy, request, teacher=None, rounding=None):
        super().__init__()
        self.run, self.trained, self.schedule, self.strategy, self.request = run, model, schedule, strategy, request
        self.history = History(run, machine_flops(run.arguments, strategy))
        self.report = _report_function(run) if run.is_first else lambda step, values: None
        self.evaluation, self.teacher, self.rounding = _evaluation_function(run, model), teacher, rounding
        self.stopped = False
        self._restart_means(run.step)

    def on_train_begin(self, logs=None):
        if self.teacher:
            if not self.history.teacher():
                self.history.log_teacher(evaluate_tokens(self.run, token_loss_function(self.teacher.model)))
            self.report(self.run.step, self.history.teacher())
            self.history.restart_clock(self.run.step)
        if self.run.arguments.eval_on_start and not self.run.step:
            self._evaluate(0)

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
        ends = False
        if step % arguments.eval_steps == 0 or is_last or saves:
            self._evaluate(step)
            ends = on_any_worker(self.strategy, self.history.has_stopped_improving())
        if saves or (ends and arguments.save_steps):
            self._save(step)
            self.history.restart_clock(step)
        self.stopped = self.stopped and not ends
        if self.stopped or ends:
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        if self.run.arguments.report_to == "wandb":
            import wandb

            wandb.finish()

    def _evaluate(self, step):
        with self.rounding.applied() if self.rounding else contextlib.nullcontext():
            self.report(step, self.history.log_evaluation(step, *self.evaluation()))
        self.history.restart_clock(step)

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
                save_tokenizer(run.tokenizer, directory)
                save_training_state(self.trained, self.model.optimizer, step, directory)
        wait_for_everyone(self.strategy)


def _evaluation_function(run, model):
    """A function that evaluates a model: to an evaluation, and a dict of values besides."""
    if run.measures_perplexity:
        language_model = model.language_model() if run.arguments.sop else model
        losses, orders = token_loss_function(language_model), order_function(model)
        return lambda: evaluate_run(run, losses, orders)
    class_logits = class_logits_function(model)

    def evaluate():
        evaluation = evaluate_classes(run, class_logits)
        return evaluation, evaluation.values

    return evaluate


class Progress(keras.callbacks.Callback):
    """A progress bar on a terminal, as that of transformers' Trainer; the history prints the numbers."""

    def __init__(self, run):
        super().__init__()
        self.bar = tqdm(total=run.steps, initial=run.step, dynamic_ncols=True, disable=None)

    def on_train_batch_end(self, batch, logs=None):
        self.bar.update()

    def on_train_end(self, logs=None):
        self.bar.close()


def _report_function(run):
    """A function from a step and its values to wandb or TensorBoard, as `--report-to` asks."""
    if run.arguments.report_to == "wandb":
        import wandb

        config = {**vars(run.arguments), "parameters": parameter_count(run.config)}
        wandb_run = wandb.init(name=run.arguments.run_name, dir=run.directory, config=config)
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
