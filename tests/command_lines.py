"""Command lines called in the test's own process, and what is read of the runs they leave."""

import importlib.util
import json

import h5py
from safetensors.numpy import load_file

FRAMEWORKS = ("pt", "tf")
WEIGHTS_FILES = {"pt": "model.safetensors", "tf": "model.weights.h5"}
TINY_CONFIG = {"model_type": "algpt2", "n_positions": 16, "n_embd": 16, "n_head": 2, "n_layer": 2, "embedding_size": 8}


def run(capsys, module, *arguments):
    """Exit code, standard output and standard error of a command line.

    Args:
        capsys: pytest's fixture.
        module: a module, or its name; its `main` takes the arguments.
    """
    module = importlib.import_module(module) if isinstance(module, str) else module
    code = 0
    try:
        module.main([str(argument) for argument in arguments])
    except SystemExit as stopped:
        code = stopped.code
    return (code, *capsys.readouterr())


def program_of(module):
    """str: the module that `python -m` runs for a module or a package."""
    is_package = importlib.util.find_spec(module).submodule_search_locations is not None
    return f"{module}.__main__" if is_package else module


def history(directory):
    """The records of a run; none before it has begun."""
    path = directory / "history.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def stored_weights(directory):
    """Every array of a directory's weights file, by its name there."""
    if (directory / WEIGHTS_FILES["pt"]).exists():
        return load_file(directory / WEIGHTS_FILES["pt"])
    found = {}
    with h5py.File(directory / WEIGHTS_FILES["tf"]) as file:
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
    return found


def train_arguments(files, output, *extra):
    """The arguments of a short run with the fixture `files`, and more of them."""
    return [
        "--config", files / "config.json", "--dataset", files / "train.txt", "--validation", files / "valid.txt",
        *([] if "--tokenizer" in extra else ["--vocab-size", 400]),
        "--batch-size", 4, "--max-steps", 12, "--logging-steps", 4, "--eval-steps", 6,
        "--learning-rate", 1e-2, "--seed", 7, "--output-dir", output, *extra,
    ]  # fmt: skip
