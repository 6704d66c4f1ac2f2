"""The devices of a run in PyTorch: which there are, and how fast they multiply."""

import os

import torch

from algpt2.errors import InputError
from algpt2.training.flops import peak_flops
from algpt2.training.preparation import check_batch
from algpt2_pt.cpu_kernels import multiply_transposed

# By the names of `--precision`.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    size = 8192 if gpu else 512
    matrix = torch.ones(size, size, dtype=DTYPES[arguments.precision], device="cuda" if gpu else "cpu")

    def multiply():
        product = multiply_transposed(matrix, matrix)
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
