"""Train ALGPT2 in PyTorch: `python -m algpt2_pt.train --help`."""

import os
import sys

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from algpt2.checkpoint import files_replaced_in
from algpt2.errors import InputError, exit_on_error
from algpt2.evaluation import evaluate
from algpt2.run import History, prepare_run, train_parser
from algpt2_pt.evaluate import token_loss_function
from algpt2_pt.modeling_algpt2 import ALGPT2LMHeadModel

SCHEDULER_TYPES = {"linear": "linear", "cosine": "cosine", "constant": "constant_with_warmup"}


def device_count():
    """The number of devices that share a batch: processes of `torchrun`, or else the GPUs of this one."""
    return int(os.environ.get("WORLD_SIZE", 0)) or max(1, torch.cuda.device_count())


class OrderedBlocks(torch.utils.data.Dataset):
    """The training samples of a run, in their order.

    Args:
        run: `algpt2.run.Run`.
    """

    def __init__(self, run):
        self.run = run

    def __len__(self):
        return len(self.run.order)

    def __getitem__(self, sample):
        ids = torch.from_numpy(self.run.blocks.rows(self.run.order[[sample]])[0][0]).long()
        return {"input_ids": ids, "labels": ids}


class RunTrainer(Trainer):
    """transformers' Trainer, evaluating by the protocol that both frameworks share.

    Args:
        run: `algpt2.run.Run`.
        history: `algpt2.run.History`.
        **kwargs: as in `transformers.Trainer`.
    """

    def __init__(self, run, history, **kwargs):
        super().__init__(**kwargs)
        self.run, self.history = run, history

    def compute_loss(self, model, inputs, **kwargs):
        # Training needs no keys and values of earlier tokens, but the trained model shall keep them.
        return super().compute_loss(model, {**inputs, "use_cache": False}, **kwargs)

    def evaluate(self, *args, **kwargs):
        run, step = self.run, self.state.global_step
        losses = token_loss_function(self.accelerator.unwrap_model(self.model))
        metrics = self.history.log_evaluation(
            step, evaluate(losses, run.validation, run.length, run.arguments.batch_size)
        )
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.history.restart_clock(step)
        return metrics


class _HistoryCallback(TrainerCallback):
    def __init__(self, history):
        self.history = history

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            # The first step warms up.
            self.history.restart_clock(1)
        control.should_log = control.should_log or state.global_step == state.max_steps

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.history.log_train(state.global_step, float(logs["loss"]), float(logs["learning_rate"]))


class _QuietProgress(ProgressCallback):
    def on_log(self, *args, **kwargs):
        pass


def train(run):
    """Train a model on a prepared run and write it to the run directory.

    Args:
        run: `algpt2.run.Run`.

    Returns:
        `ALGPT2LMHeadModel`.
    """
    arguments = run.arguments
    set_seed(arguments.seed)
    model = ALGPT2LMHeadModel(run.config)
    training_arguments = TrainingArguments(
        output_dir=run.directory,
        max_steps=run.steps,
        per_device_train_batch_size=arguments.batch_size // device_count(),
        train_sampling_strategy="sequential",
        learning_rate=arguments.learning_rate,
        lr_scheduler_type=SCHEDULER_TYPES[arguments.lr_schedule],
        warmup_steps=run.warmup_steps,
        weight_decay=arguments.weight_decay,
        max_grad_norm=arguments.max_grad_norm,
        seed=arguments.seed,
        logging_steps=arguments.logging_steps,
        eval_strategy="steps",
        eval_steps=arguments.eval_steps,
        save_strategy="steps" if arguments.save_steps else "no",
        save_steps=arguments.save_steps or 500,
        report_to=arguments.report_to,
        use_cache=True,
        logging_nan_inf_filter=False,
        disable_tqdm=not sys.stderr.isatty(),
    )
    history = History(run)
    trainer = RunTrainer(
        run,
        history,
        model=model,
        args=training_arguments,
        train_dataset=OrderedBlocks(run),
        eval_dataset=[],
        processing_class=run.tokenizer,
        callbacks=[_HistoryCallback(history)],
    )
    # The history prints; the progress bar shall only show progress.
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(_QuietProgress)
    trainer.train()
    with files_replaced_in(run.directory) as temporary:
        model.save_pretrained(temporary)
    history.draw()
    return model


def main(argv=None):
    parser = train_parser("python -m algpt2_pt.train", "Train ALGPT2 in PyTorch, with transformers' Trainer.")
    arguments = parser.parse_args(argv)
    with exit_on_error(parser.prog):
        if arguments.batch_size % device_count():
            raise InputError(f"--batch-size {arguments.batch_size} must be divisible by {device_count()} devices")
        train(prepare_run(arguments))
        print(f"wrote {arguments.output_dir}")


if __name__ == "__main__":
    main()
