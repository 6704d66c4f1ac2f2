"""Train ALGPT2 in PyTorch: `python -m algpt2_pt.train --help`, or by `torchrun` or `accelerate launch`."""

import datetime
import json
import os
import sys

import torch
from accelerate import DistributedType, PartialState
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging

from algpt2.checkpoint import files_replaced_in, find_checkpoint, read_checkpoint
from algpt2.checkpointing import StopRequest
from algpt2.devices import peak_flops
from algpt2.errors import InputError, exit_on_error
from algpt2.history import History, divergence
from algpt2.run import check_batch, evaluate_run, finish_run, prepare_run, report_start
from algpt2.train_arguments import parse_train_arguments, train_parser
from algpt2.weights import check_weights, parameter_count
from algpt2_pt.evaluate import token_loss_function
from algpt2_pt.modeling_algpt2 import ALGPT2LMHeadModel, to_torch
from algpt2_pt.optimization import create_optimizer, create_scheduler
from algpt2_pt.pretraining import ALGPT2ForPreTraining


def parser():
    """The command line: that of both frameworks, and `--fsdp`."""
    result = train_parser(
        "python -m algpt2_pt.train", "Train ALGPT2 in PyTorch, with transformers' Trainer.", "pytorch"
    )
    result.add_argument_group("devices").add_argument(
        "--fsdp", action="store_true", help="under torchrun: shard weights and optimizer over the processes (FSDP2)"
    )
    return result


class Samples(torch.utils.data.Dataset):
    """The training samples of a run, in their order.

    Args:
        run: `algpt2.run.Run`.
    """

    def __init__(self, run):
        self.run = run

    def __len__(self):
        return len(self.run.order)

    def __getitem__(self, sample):
        arrays = self.run.samples([sample])
        return {name: torch.from_numpy(array).long()[0] for name, array in arrays.items()}


class RunTrainer(Trainer):
    """transformers' Trainer, with the optimizers, the evaluation and the checkpoints that both frameworks share.

    Args:
        run: `algpt2.run.Run`.
        history: `algpt2.history.History`.
        **kwargs: as in `transformers.Trainer`.
    """

    def __init__(self, run, history, **kwargs):
        self.run, self.history = run, history
        self.sop_loss = 0.0
        self._output_directory = run.directory
        super().__init__(**kwargs)

    def create_optimizer(self, model=None):
        arguments = self.run.arguments
        if self.optimizer is None:
            self.optimizer = create_optimizer(
                model or self.model, arguments.optimizer, arguments.learning_rate, arguments.weight_decay
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
        # Training needs no keys and values of earlier tokens, but the trained model shall keep them.
        inputs = {**inputs, "use_cache": False}
        if self.run.arguments.sop:
            inputs["num_sequences_in_batch"] = self.run.arguments.batch_size
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)
        if self.run.arguments.sop:
            # Of several GPUs of one process each has its part.
            self.sop_loss += outputs.sop_loss.detach().sum()
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *args, **kwargs):
        run, step = self.run, self.state.global_step
        model = self.accelerator.unwrap_model(self.model)
        metrics = self.history.log_evaluation(
            step, *evaluate_run(run, token_loss_function(model), order_function(model))
        )
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.history.restart_clock(step)
        return metrics

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, _without_tied(self.model, state_dict))

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

    def _issue_warnings_after_load(self, load_result):
        # The tied head is not stored.
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name != "lm_head.weight"]
        super()._issue_warnings_after_load(load_result)


class _RunCallback(TrainerCallback):
    """Logs, evaluates and saves at the intervals of the run, and when a stop is requested."""

    def __init__(self, trainer, stop_request):
        self.trainer, self.stop_request = trainer, stop_request
        self.has_logged = False

    def on_step_end(self, args, state, control, **kwargs):
        run, history, step = self.trainer.run, self.trainer.history, state.global_step
        if step == run.step + 1:
            # The first step warms up.
            history.restart_clock(step)
        if self._must_stop():
            control.should_save = control.should_training_stop = True
        # A checkpoint begins new means, so that a resumed run records the same ones.
        control.should_log = control.should_log or control.should_save or step == state.max_steps
        control.should_evaluate = control.should_evaluate or control.should_save

    def _must_stop(self):
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return self.stop_request.made
        # All processes stop at the same step.
        if self.stop_request.made:
            accelerator.set_trigger()
        return accelerator.check_trigger()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in logs:
            return
        history, step = self.trainer.history, state.global_step
        loss, values = float(logs["loss"]), {}
        if self.trainer.run.arguments.sop:
            steps = step - self.logged_step
            sop_loss = self.trainer.accelerator.reduce(torch.as_tensor(self.trainer.sop_loss)).item() / steps
            loss, values = loss - sop_loss, {"sop_loss": sop_loss}
        self.logged_step, self.trainer.sop_loss = step, 0.0
        recorded = history.log_train(step, loss, float(logs["learning_rate"]), **values)
        # The reporters that come after this one get the same values.
        logs |= recorded
        if not self.has_logged:
            logs["parameters"], self.has_logged = parameter_count(self.trainer.run.config), True

    def on_train_begin(self, args, state, control, **kwargs):
        self.logged_step = state.global_step
        # Trainer would take the intervals of a resumed run from its checkpoint.
        state.logging_steps, state.eval_steps, state.save_steps = args.logging_steps, args.eval_steps, args.save_steps


class _QuietProgress(ProgressCallback):
    def on_log(self, *args, **kwargs):
        pass


def train(run):
    """Train a model on a prepared run and write it to the run directory.

    Args:
        run: `algpt2.run.Run`.

    Returns:
        `ALGPT2LMHeadModel`, with `--sop` an `ALGPT2ForPreTraining`.

    Raises:
        KeyboardInterrupt: if a stop was requested; a checkpoint is there.
    """
    arguments = run.arguments
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    if run.step and run.is_first:
        check_checkpoint(run.checkpoints.path(run.step))
    set_seed(arguments.seed)
    model = initial_model(run)
    history = History(run, machine_flops(arguments))
    settings = training_arguments(run)
    if arguments.fsdp and settings.device.type == "cpu":
        # accelerate shards where there are GPUs only, though gloo does it on CPUs as well.
        PartialState().distributed_type = DistributedType.MULTI_GPU
    trainer = RunTrainer(
        run,
        history,
        model=model,
        args=settings,
        train_dataset=Samples(run),
        eval_dataset=[],
        processing_class=run.tokenizer,
    )
    # The history prints; the progress bar shall only show progress.
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(_QuietProgress)
    with StopRequest() as request:
        trainer.callback_handler.callbacks.insert(1, _RunCallback(trainer, request))
        report_start(run)
        trainer.train(resume_from_checkpoint=str(run.checkpoints.path(run.step)) if run.step else None)
    if trainer.state.global_step < run.steps:
        raise KeyboardInterrupt
    state = _without_tied(model, trainer.accelerator.get_state_dict(trainer.model_wrapped))
    if run.is_first:
        with files_replaced_in(run.directory) as temporary:
            model.save_pretrained(temporary, state_dict=state)
        finish_run(run)
    trainer.accelerator.wait_for_everyone()
    return model


def _without_tied(model, state_dict):
    # Tensors gathered from shards no longer tell that they are one.
    tied = model._tied_weights_keys if model.config.tie_word_embeddings else ()
    return state_dict and {name: tensor for name, tensor in state_dict.items() if name not in tied}


def initial_model(run):
    """The model that a run starts from: new, or with the weights of `--init-from`."""
    model = (ALGPT2ForPreTraining if run.arguments.sop else ALGPT2LMHeadModel)(run.config)
    if run.arguments.init_from:
        directory = find_checkpoint(run.arguments.init_from)
        weights = read_checkpoint(directory)[1]
        check_weights(run.config, weights, source=directory)
        # A head that only one of the two has starts new or is left out.
        model.load_state_dict({name: to_torch(array).float() for name, array in weights.items()}, strict=False)
    return model


def check_checkpoint(directory):
    """Raise an InputError unless a checkpoint of Trainer is whole.

    Args:
        directory: path.
    """
    try:
        read_checkpoint(directory)
        for pattern in ("trainer_state.json", "optimizer.*", "scheduler.pt", "rng_state*.pth"):
            if not list(directory.glob(pattern)):
                raise InputError(f"{directory / pattern}: no such file")
        json.loads((directory / "trainer_state.json").read_text())["global_step"]
        for path in [*directory.glob("optimizer.*"), directory / "scheduler.pt"]:
            torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises errors of many kinds
        raise InputError(
            f"{directory}: damaged ({error}); remove it, and --resume goes on from the checkpoint before"
        ) from error


def training_arguments(run):
    """The settings of a run as transformers' Trainer takes them.

    Args:
        run: `algpt2.run.Run`.

    Returns:
        `transformers.TrainingArguments`.
    """
    arguments = run.arguments
    parts = arguments.gradient_accumulation * process_count(arguments)
    return TrainingArguments(
        output_dir=run.directory,
        max_steps=run.steps,
        per_device_train_batch_size=arguments.batch_size // parts,
        gradient_accumulation_steps=arguments.gradient_accumulation,
        activation_checkpointing=arguments.gradient_checkpointing,
        train_sampling_strategy="sequential",
        learning_rate=arguments.learning_rate,
        max_grad_norm=arguments.max_grad_norm,
        bf16=arguments.precision == "bf16",
        fp16=arguments.precision == "fp16",
        use_cpu=not uses_gpu(arguments),
        fsdp=arguments.fsdp,
        ddp_find_unused_parameters=False,
        seed=arguments.seed,
        logging_steps=arguments.logging_steps,
        eval_strategy="steps",
        eval_steps=arguments.eval_steps,
        save_strategy="steps" if arguments.save_steps else "no",
        save_steps=arguments.save_steps or 500,
        report_to=arguments.report_to,
        use_cache=True,
        dataloader_pin_memory=uses_gpu(arguments),
        logging_nan_inf_filter=False,
        disable_tqdm=not sys.stderr.isatty(),
    )


def uses_gpu(arguments):
    """bool: whether a run uses GPUs."""
    return arguments.device != "cpu" and torch.cuda.is_available()


def process_count(arguments):
    """int: the parts that a batch is split into: processes of `torchrun`, or else the GPUs of this one."""
    gpus = torch.cuda.device_count() if uses_gpu(arguments) else 0
    return int(os.environ.get("WORLD_SIZE", 0)) or max(1, gpus)


def machine_flops(arguments):
    """float: the floating-point operations a second that the devices of a run reach in a matrix product."""
    gpu = uses_gpu(arguments)
    size, dtype = (8192 if gpu else 1536), {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    matrix = torch.ones(size, size, dtype=dtype[arguments.precision], device="cuda" if gpu else "cpu")

    def multiply():
        product = matrix @ matrix
        if gpu:
            torch.cuda.synchronize()
        return product

    return peak_flops(multiply, size) * (process_count(arguments) if gpu else 1)


def order_function(model):
    """A function from ids, int32 (batch, length), to the sentence orders that a model sees, int (batch,).

    Args:
        model: `ALGPT2ForPreTraining`.
    """

    @torch.no_grad()
    def compute(ids):
        was_training = model.training
        model.eval()
        logits = model(torch.as_tensor(ids, dtype=torch.long, device=model.device), use_cache=False).sop_logits
        model.train(was_training)
        return logits.argmax(-1).cpu().numpy()

    return compute


def check_devices(arguments):
    """Raise an InputError for what the devices or their number do not allow."""
    if arguments.device == "gpu" and not torch.cuda.is_available():
        raise InputError("--device gpu: PyTorch finds no GPU; leave --device out, or install a build with CUDA")
    if arguments.precision == "fp16" and not uses_gpu(arguments):
        raise InputError("--precision fp16 needs a GPU; take bf16 on a CPU")
    if arguments.fsdp and "WORLD_SIZE" not in os.environ:
        raise InputError("--fsdp shards over several processes; start it by torchrun or accelerate launch")
    if arguments.fsdp and arguments.optimizer == "adafactor":
        raise InputError("--fsdp: PyTorch's Adafactor cannot work on shards of a matrix; take another --optimizer")
    check_batch(arguments, process_count(arguments))


def main(argv=None):
    command = parser()
    with exit_on_error(command.prog):
        arguments = parse_train_arguments(command, argv)
        check_devices(arguments)
        # The first process may tokenize for hours before the others go on.
        state = PartialState(cpu=not uses_gpu(arguments), timeout=datetime.timedelta(hours=24))
        with state.main_process_first():
            run = prepare_run(arguments, is_first=state.is_main_process)
        if run.is_finished:
            if run.is_first:
                finish_run(run)
                print(f"{arguments.output_dir}: the run is finished")
            return
        train(run)
        if run.is_first:
            print(f"wrote {arguments.output_dir}")


if __name__ == "__main__":
    main()
