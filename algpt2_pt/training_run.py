"""A run of training in PyTorch, from its arguments to its directory."""

import contextlib
import datetime
import os
import sys

import torch
from accelerate import DistributedType, PartialState
from transformers import TrainingArguments, default_data_collator, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging

from algpt2.errors import InputError
from algpt2.files.atomic import files_replaced_in
from algpt2.training.history import History
from algpt2.training.preparation import check_batch, prepare_run
from algpt2.training.run import best_weights, evaluate_tokens, finish_run, finished, start_run
from algpt2.training.run_directory import writing_run
from algpt2.training.stop import StopRequest
from algpt2_pt.cpu_attention import use_fast_attention
from algpt2_pt.cpu_kernels import use_fast_kernels
from algpt2_pt.devices import machine_flops, process_count, uses_gpu
from algpt2_pt.distillation import make_teacher
from algpt2_pt.evaluation import token_loss_function
from algpt2_pt.memory import keep_freed_memory
from algpt2_pt.models import ALGPT2ForSequenceClassification, language_model_class
from algpt2_pt.quantization_aware import QuantizationAware
from algpt2_pt.training import QuietProgress, RunCallback, RunTrainer, Samples
from algpt2_pt.training_state import read_training_state
from algpt2_pt.weights import to_torch, without_tied


def run(arguments):
    """Make or go on with a run.

    Args:
        arguments: `argparse.Namespace` of `algpt2.training.given_arguments.parse_train_arguments`.

    Raises:
        algpt2.errors.InputError: for anything wrong in the arguments or the data.
    """
    _check_devices(arguments)
    # The first process may tokenize for hours before the others go on.
    state = PartialState(cpu=not uses_gpu(arguments), timeout=datetime.timedelta(hours=24))
    with contextlib.ExitStack() as stack:
        with state.main_process_first():
            if state.is_main_process:
                stack.enter_context(writing_run(arguments.output_dir))
            run = prepare_run(arguments, is_first=state.is_main_process)
        if run.is_finished:
            if run.is_first:
                finish_run(run)
                print(finished(run))
            return
        train(run)
    if run.is_first:
        print(f"wrote {arguments.output_dir}")


def _check_devices(arguments):
    gpu = uses_gpu(arguments)
    if arguments.precision == "fp16" and not gpu:
        raise InputError("--precision fp16 needs a GPU; take bf16 on a CPU")
    if arguments.fsdp and "WORLD_SIZE" not in os.environ:
        raise InputError("--fsdp shards over several processes; start it by torchrun or accelerate launch")
    if arguments.fsdp and arguments.optimizer == "adafactor":
        raise InputError("--fsdp: PyTorch's Adafactor cannot work on shards of a matrix; take another --optimizer")
    check_batch(arguments, process_count(arguments))


def train(run):
    """Train a model on a prepared run and write it to the run directory.

    Args:
        run: `algpt2.training.run.Run`.

    Returns:
        `ALGPT2LMHeadModel`, with `--sop` an `ALGPT2ForPreTraining`; or an `ALGPT2ForSequenceClassification`.

    Raises:
        KeyboardInterrupt: if a stop was requested; a checkpoint is there.
    """
    arguments = run.arguments
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    settings = training_arguments(run)
    if settings.device.type == "cpu":
        keep_freed_memory()
    # Before the seed is set, so that the model starts as it would without a teacher.
    teacher = make_teacher(run, settings.device)
    set_seed(arguments.seed)
    model = initial_model(run)
    if run.step and run.is_first:
        # Trainer reads it again, but has no words for what is wrong with it.
        read_training_state(run.checkpoints.path(run.step), model, arguments)
    start_run(run)
    if arguments.gradient_checkpointing:
        # transformers before 5.23 calls it by its older name only.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    if run.depths:
        # With --compile every depth is compiled, while PyTorch would go on uncompiled after eight.
        torch.compiler.config.recompile_limit = max(8, run.config.n_layer)
    history = History(run, machine_flops(arguments))
    if teacher and not history.teacher():
        history.log_teacher(evaluate_tokens(run, token_loss_function(teacher.model)))
    if arguments.fsdp and settings.device.type == "cpu":
        # accelerate shards where there are GPUs only, though gloo does it on CPUs as well.
        PartialState().distributed_type = DistributedType.MULTI_GPU
    rounding = QuantizationAware(model) if arguments.quantize else None
    trainer = RunTrainer(
        run,
        history,
        teacher,
        rounding,
        model=model,
        args=settings,
        train_dataset=Samples(run),
        eval_dataset=[],
        # All samples are of one length. Trainer's own would pad them by the tokenizer, which may have no pad_token.
        data_collator=default_data_collator,
        processing_class=run.tokenizer,
        callbacks=[rounding] if rounding else None,
    )
    # The history prints; the progress bar shall only show progress.
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(QuietProgress)
    with StopRequest() as request:
        trainer.callback_handler.callbacks.insert(1, RunCallback(trainer, request))
        if not history.has_stopped_improving():
            trainer.train(resume_from_checkpoint=str(run.checkpoints.path(run.step)) if run.step else None)
    if trainer.state.global_step < run.steps and not history.has_stopped_improving():
        raise KeyboardInterrupt
    state = without_tied(model, trainer.accelerator.get_state_dict(trainer.model_wrapped))
    best = best_weights(run, history.evaluation_losses())
    if best:
        state = {name: to_torch(array) for name, array in best.items()}
    # FSDP gathers for the first process alone.
    if rounding and state:
        state = rounding.rounded_state(state)
    if (best or rounding) and not arguments.fsdp:
        model.load_state_dict(state, strict=False)
    if run.is_first:
        with files_replaced_in(run.directory) as temporary:
            model.save_pretrained(temporary, state_dict=state)
        finish_run(run)
    trainer.accelerator.wait_for_everyone()
    return model


def initial_model(run):
    """The model that a run starts or goes on with."""
    classifies = run.arguments.task == "classify"
    model_class = ALGPT2ForSequenceClassification if classifies else language_model_class(run.arguments.sop)
    model = use_fast_kernels(model_class(run.config))
    if run.arguments.precision == "bf16" and not (uses_gpu(run.arguments) or run.arguments.compile):
        use_fast_attention(model)
    weights = run.starting_weights()
    if weights:
        # A head starts new if only the model has it, and is left out if only the weights have it.
        model.load_state_dict({name: to_torch(array).float() for name, array in weights.items()}, strict=False)
    return model


def training_arguments(run):
    """The settings of a run as transformers' Trainer takes them.

    Args:
        run: `algpt2.training.run.Run`.

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
        eval_on_start=arguments.eval_on_start and not run.step,
        save_strategy="steps" if arguments.save_steps else "no",
        save_steps=arguments.save_steps or 500,
        report_to=arguments.report_to,
        run_name=arguments.run_name,
        torch_compile=arguments.compile,
        use_cache=True,
        dataloader_pin_memory=uses_gpu(arguments),
        logging_nan_inf_filter=False,
        disable_tqdm=not sys.stderr.isatty(),
    )
