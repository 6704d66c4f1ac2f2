"""transformers' Trainer for a run: its samples, its optimizer, its evaluation and its checkpoints."""

import contextlib

import torch
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ProgressCallback

from algpt2.checkpoints.weights import parameter_count
from algpt2.configuration import at_depth_of
from algpt2.data.tokenizer import save_tokenizer
from algpt2.training.classification import evaluate_classes
from algpt2.training.history import divergence
from algpt2.training.optimization import optimizer_constants
from algpt2.training.run import evaluate_run
from algpt2_pt.evaluation import class_logits_function, order_function, token_loss_function
from algpt2_pt.optimization import create_optimizer, create_scheduler
from algpt2_pt.weights import without_tied


class Samples(torch.utils.data.Dataset):
    """The training samples of a run, in their order.

    Args:
        run: `algpt2.training.run.Run`.
    """

    def __init__(self, run):
        self.run = run

    def __len__(self):
        return len(self.run.order)

    def __getitem__(self, sample):
        arrays = self.run.samples([sample])
        tensors = {name: torch.from_numpy(array).long()[0] for name, array in arrays.items()}
        tensors.setdefault("attention_mask", torch.ones_like(tensors["input_ids"]))
        return tensors


class RunTrainer(Trainer):
    """transformers' Trainer, with the optimizers, the evaluation and the checkpoints that both frameworks share.

    Args:
        run: `algpt2.training.run.Run`.
        history: `algpt2.training.history.History`.
        teacher: `algpt2_pt.distillation.Teacher`, or `None`.
        rounding: `algpt2_pt.quantization_aware.QuantizationAware`, which is one of the callbacks too, or `None`.
        **kwargs: as in `transformers.Trainer`.
    """

    def __init__(self, run, history, teacher=None, rounding=None, **kwargs):
        self.run, self.history, self.teacher, self.rounding = run, history, teacher, rounding
        self.sop_loss = 0.0
        self._output_directory = run.directory
        super().__init__(**kwargs)

    def create_optimizer(self, model=None):
        arguments = self.run.arguments
        if self.optimizer is None:
            self.optimizer = create_optimizer(
                model or self.model,
                arguments.optimizer,
                arguments.learning_rate,
                arguments.weight_decay,
                optimizer_constants(arguments),
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        run = self.run
        if self.lr_scheduler is None:
            self.lr_scheduler = create_scheduler(
                optimizer or self.optimizer, run.arguments.lr_schedule, run.warmup_steps, run.steps, run.decay_steps
            )
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        # Training needs no keys and values of earlier tokens; the configuration of the model keeps `use_cache`.
        inputs = {**inputs, "use_cache": False}
        if self.run.measures_perplexity:
            inputs["skip_logits"] = True
        if self.run.arguments.sop:
            inputs["num_sequences_in_batch"] = self.run.arguments.batch_size
        if self.teacher:
            inputs |= self.teacher.targets(inputs["input_ids"], inputs["attention_mask"])
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.run.arguments.sop:
            # With several GPUs in one process, each has its part of the loss.
            self.sop_loss += outputs.sop_loss.detach().sum()
        if self.run.depths and self.model.config.has_depth_parameters:
            # What belongs to depths that this step leaves out has a gradient all the same: zero.
            own = (parameter for name, parameter in model.named_parameters() if ".depths." in name)
            loss = loss + 0.0 * sum(parameter.sum() for parameter in own)
        return (loss, outputs) if return_outputs else loss

    def take_losses(self):
        """dict of str to float: the sums over steps of the losses besides the whole one, since they were last taken."""
        sums = {"sop_loss": torch.as_tensor(self.sop_loss)} if self.run.arguments.sop else {}
        if self.teacher:
            sums |= dict(zip(("lm_loss", "distill_loss"), self.teacher.losses.clone(), strict=True))
            self.teacher.losses.zero_()
        self.sop_loss = 0.0
        return {name: self.accelerator.reduce(total).item() for name, total in sums.items()}

    def training_step(self, *args, **kwargs):
        # All parts of a step are of one depth, and what is computed again in the backward pass too.
        depths = self.run.depths
        if not depths:
            return super().training_step(*args, **kwargs)
        with at_depth_of(self.model.config, depths.config(self.state.global_step)):
            return super().training_step(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        run, step = self.run, self.state.global_step
        model = self.accelerator.unwrap_model(self.model)
        with self.rounding.applied() if self.rounding else contextlib.nullcontext():
            metrics = self.history.log_evaluation(step, *_evaluation(run, model))
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.history.restart_clock(step)
        return metrics

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, without_tied(self.model, state_dict))
        # Every process comes here.
        if self.args.should_save:
            save_tokenizer(self.processing_class, output_dir)

    def _get_output_dir(self, trial):
        return self._output_directory

    def _save_checkpoint(self, model, trial):
        checkpoints, step = self.run.checkpoints, self.state.global_step
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise divergence(step, "a weight is not finite")
        losses, wait = self.history.evaluation_losses(), self.accelerator.wait_for_everyone
        with checkpoints.writing(step, losses, self.run.is_first, wait) as directory:
            self._output_directory = directory.parent
            super()._save_checkpoint(model, trial)
        self._output_directory = self.run.directory
        self.history.restart_clock(step)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            # What was saved is the rate of the schedule then, which may have been a shorter one.
            scheduler = self.lr_scheduler
            rates = zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)
            scheduler._last_lr = [rate * factor(scheduler.last_epoch) for rate, factor in rates]
            for group, rate in zip(self.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
                group["lr"] = rate

    def _load_from_checkpoint(self, *args, **kwargs):
        # The model has the weights of the checkpoint already.
        pass


def _evaluation(run, model):
    """What the history records of a model: an evaluation, and a dict of values besides."""
    if run.measures_perplexity:
        return evaluate_run(run, token_loss_function(model), order_function(model))
    evaluation = evaluate_classes(run, class_logits_function(model))
    return evaluation, evaluation.values


class RunCallback(TrainerCallback):
    """Logs, evaluates and saves at the intervals of the run, and when a stop is requested."""

    def __init__(self, trainer, stop_request):
        self.trainer, self.stop_request = trainer, stop_request
        self.has_logged = False

    def on_step_end(self, args, state, control, **kwargs):
        run, history, step = self.trainer.run, self.trainer.history, state.global_step
        if step == run.step + 1:
            # The first step warms up.
            history.restart_clock(step)
        if self._on_any_process(self.stop_request.made):
            control.should_save = control.should_training_stop = True
        # A checkpoint begins new means, so that a resumed run records the same ones.
        control.should_log = control.should_log or control.should_save or step == state.max_steps
        control.should_evaluate = control.should_evaluate or control.should_save

    def on_evaluate(self, args, state, control, **kwargs):
        if self._on_any_process(self.trainer.history.has_stopped_improving()):
            control.should_save = bool(self.trainer.run.arguments.save_steps)
            control.should_training_stop = True

    def _on_any_process(self, wish):
        # All processes stop at the same step.
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return wish
        if wish:
            accelerator.set_trigger()
        return accelerator.check_trigger()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        history, step = self.trainer.history, state.global_step
        steps, self.logged_step = step - self.logged_step, step
        values = {name: total / steps for name, total in self.trainer.take_losses().items()}
        loss = float(logs["loss"]) - values.get("sop_loss", 0.0)
        recorded = history.log_train(step, loss, float(logs["learning_rate"]), **values)
        # The reporters that come after this one get the same values.
        logs |= recorded
        if not self.has_logged:
            logs |= {"parameters": parameter_count(self.trainer.run.config), **history.teacher()}
            self.has_logged = True

    def on_train_begin(self, args, state, control, **kwargs):
        self.logged_step = state.global_step
        # Trainer would take the intervals of a resumed run from its checkpoint.
        state.logging_steps, state.eval_steps, state.save_steps = args.logging_steps, args.eval_steps, args.save_steps


class QuietProgress(ProgressCallback):
    """A progress bar that only shows progress: the history prints the numbers."""

    def on_log(self, *args, **kwargs):
        pass
