"""Train ALGPT2 in PyTorch: `python -m algpt2_pt.train --help`, or by `torchrun` or `accelerate launch`."""

import datetime
import os
import sys

import torch
from accelerate import DistributedType, PartialState
from transformers import TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging

from algpt2.checkpoint import files_replaced_in, find_checkpoint, read_checkpoint
from algpt2.checkpointing import StopRequest
from algpt2.devices import peak_flops
from algpt2.errors import InputError, exit_on_error
from algpt2.history import History
from algpt2.preparation import check_batch, prepare_run
from algpt2.run import finish_run, report_start
from algpt2.train_arguments import parse_train_arguments, train_parser
from algpt2.weights import check_weights
from algpt2_pt.modeling_algpt2 import ALGPT2LMHeadModel, to_torch
from algpt2_pt.pretraining import ALGPT2ForPreTraining
from algpt2_pt.products import matmul_transposed
from algpt2_pt.trainer import QuietProgress, RunCallback, RunTrainer, Samples, without_tied
from algpt2_pt.training_state import check_checkpoint


def parser():
    """The command line: that of both frameworks, and `--fsdp`."""
    result = train_parser(
        "python -m algpt2_pt.train", "Train ALGPT2 in PyTorch, with transformers' Trainer.", "pytorch"
    )
    result.add_argument_group("devices").add_argument(
        "--fsdp", action="store_true", help="under torchrun: shard weights and optimizer over the processes (FSDP2)"
    )
    return result


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
    if arguments.gradient_checkpointing:
        # transformers before 5.23 calls it by its older name only.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
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
        trainer.add_callback(QuietProgress)
    with StopRequest() as request:
        trainer.callback_handler.callbacks.insert(1, RunCallback(trainer, request))
        report_start(run)
        trainer.train(resume_from_checkpoint=str(run.checkpoints.path(run.step)) if run.step else None)
    if trainer.state.global_step < run.steps:
        raise KeyboardInterrupt
    state = without_tied(model, trainer.accelerator.get_state_dict(trainer.model_wrapped))
    if run.is_first:
        with files_replaced_in(run.directory) as temporary:
            model.save_pretrained(temporary, state_dict=state)
        finish_run(run)
    trainer.accelerator.wait_for_everyone()
    return model


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
    size, dtype = (8192 if gpu else 512), {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    matrix = torch.ones(size, size, dtype=dtype[arguments.precision], device="cuda" if gpu else "cpu")

    def multiply():
        product = matmul_transposed(matrix, matrix)
        if gpu:
            torch.cuda.synchronize()
        return product

    return peak_flops(multiply, size) * (process_count(arguments) if gpu else 1)


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
