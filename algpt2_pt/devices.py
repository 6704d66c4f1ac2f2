"""The devices of a command in PyTorch: which there are, and how fast they multiply."""

import os

import torch

from algpt2.errors import InputError
from algpt2.training.flops import peak_flops
from algpt2_pt.cpu_kernels import multiply_transposed

# By the names of `--precision`.
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def uses_gpu(arguments):
    """bool: whether a command uses GPUs; an InputError if it is to, and there is none."""
    has_gpu = torch.cuda.is_available()
    if arguments.device == "gpu" and not has_gpu:
        raise InputError("--device gpu: PyTorch finds no GPU; leave --device out, or install a build with CUDA")
    return arguments.device != "cpu" and has_gpu


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
