"""Each framework is imported on its own, and documentation says what the code does."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys

import pytest
from command_lines import program_of
from isolation import ROOT, TENSORFLOW, TORCH, run_without

QUIET = "TF_CPP_MIN_LOG_LEVEL"
BOTH = ("convert.cli", "convert.carry_run", "convert.sides.pytorch", "convert.sides.tensorflow")


def modules_of(package):
    """The names of a package and of all modules in it, but for those that run a command when they are imported."""
    found = pkgutil.walk_packages([str(ROOT / package)], prefix=f"{package}.")
    return [package, *(module.name for module in found if not module.name.endswith("__main__"))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("modules", "blocked"),
    [
        (modules_of("algpt2"), TORCH + TENSORFLOW),
        (modules_of("algpt2_pt"), TENSORFLOW),
        (modules_of("algpt2_tf"), TORCH),
        ([name for name in modules_of("convert") if name not in BOTH], TORCH + TENSORFLOW),
        (["convert.sides.pytorch"], TENSORFLOW),
        (["convert.sides.tensorflow"], TORCH),
    ],
    ids=lambda value: value[0],
)
def test_a_framework_is_imported_without_the_other(modules, blocked):
    result = run_without(blocked, "\n".join(f"import {module}" for module in modules))
    assert result.returncode == 0, result.stderr


COMMANDS = (
    *("algpt2.__main__", "algpt2.hub", "algpt2.run", "algpt2.tokenization", "convert.__main__"),
    *("algpt2_pt.train", "algpt2_pt.evaluate", "algpt2_pt.generate", "algpt2_pt.run_model"),
    *("algpt2_pt.train_tokenizer", "algpt2_tf.train", "algpt2_tf.evaluate", "algpt2_tf.generate"),
    "algpt2_tf.tfrecords",
)
HELP = """
import importlib, time
for command in COMMANDS:
    start = time.perf_counter()
    try:
        importlib.import_module(command).main(["--help"])
    except SystemExit as stopped:
        assert stopped.code == 0, command
    assert time.perf_counter() - start < 2, command
import algpt2, algpt2_pt, algpt2_tf
assert {"ALGPT2Config", "InputError"} <= set(dir(algpt2))
assert "ALGPT2LMHeadModel" in dir(algpt2_pt) and "TFALGPT2LMHeadModel" in dir(algpt2_tf)
"""


def test_help_needs_no_framework():
    frameworks = ("torch", "accelerate", "transformers", "tensorflow", "keras", "keras_hub")
    result = run_without(frameworks, f"COMMANDS = {COMMANDS!r}{HELP}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("usage: ") == len(COMMANDS) and not result.stderr


def test_the_help_names_what_the_configuration_has():
    from algpt2 import PRESETS
    from algpt2.configuration import PATTERNS
    from algpt2.training import arguments

    assert tuple(PRESETS) == arguments.PRESETS and PATTERNS == arguments.PATTERNS


# Whichever module comes first, the Auto classes and Keras know the classes when they are needed.
ORDERS = (
    "import algpt2_pt.loading; from transformers import AutoModelForCausalLM as auto",
    "import algpt2_pt, transformers; auto = transformers.AutoModelForCausalLM",
    "import algpt2_tf.layers, keras",
)


@pytest.mark.slow
@pytest.mark.parametrize("order", ORDERS)
def test_importing_a_package_registers_its_classes(order, tmp_path):
    from models import save_checkpoint

    if "auto" in order:
        check = f"assert type(auto.from_pretrained({str(save_checkpoint(tmp_path))!r})).__name__ == 'ALGPT2LMHeadModel'"
    else:
        check = "assert keras.saving.get_registered_object('algpt2>TFALGPT2LMHeadModel')"
    result = run_without((), f"{order}\n{check}")
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "backend", "message"),
    [
        ("", None, None),
        ("", "jax", "KERAS_BACKEND is 'jax'"),
        ("import keras", "torch", "already loaded with 'torch'"),
    ],
)
def test_keras_backend(before, backend, message):
    environment = {name: value for name, value in os.environ.items() if name not in ("KERAS_BACKEND", QUIET)}
    code = f"{before}\nimport algpt2_tf, keras; print(keras.config.backend(), keras.ops.ones(2).shape)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **({"KERAS_BACKEND": backend} if backend else {})},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    if message is None:
        assert result.returncode == 0 and result.stdout == "tensorflow (2,)\n", result.stderr
        # Nothing of oneDNN, CUDA, absl and the profiler, without being asked.
        assert not result.stderr
    else:
        assert result.returncode != 0 and message in result.stderr


def public_modules():
    return [name for package in ("algpt2", "algpt2_pt", "algpt2_tf", "convert") for name in modules_of(package)]


@pytest.mark.slow
@pytest.mark.parametrize("name", public_modules())
def test_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    globs = {**vars(module)}
    if name.startswith("algpt2_"):
        globs["ALGPT2Config"] = importlib.import_module("algpt2").ALGPT2Config
    if name == "algpt2_pt.models":
        # Its docstrings are those of the file that travels, which imports torch.
        globs["torch"] = importlib.import_module("torch")
    failed, _ = doctest.testmod(module, globs=globs, optionflags=doctest.ELLIPSIS)
    assert failed == 0


@pytest.mark.parametrize("name", public_modules())
def test_modules_and_public_functions_have_docstrings(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for attribute, value in vars(module).items():
        if callable(value) and getattr(value, "__module__", None) == name and not attribute.startswith("_"):
            assert value.__doc__ or attribute == "main", f"{name}.{attribute}"


def test_commands_of_the_readme_exist(capsys):
    commands = re.findall(r"python -m ([\w.]+) ?((?:[^\n`]|\\\n)*)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert {command for command, _ in commands} >= {"algpt2_tf.train", "algpt2_pt.train", "convert"}
    for module, arguments in commands:
        loaded = importlib.import_module(program_of(module))
        with pytest.raises(SystemExit) as stopped:
            loaded.main([*arguments.split()[: module == "convert"], "--help"])
        assert stopped.value.code == 0
        help_text = capsys.readouterr().out
        for flag in re.findall(r"--[\w-]+", arguments):
            assert flag in help_text, f"{module} {flag}"


def test_parameter_counts_of_the_readme():
    from algpt2 import PRESETS, ALGPT2Config, parameter_count

    rows = re.findall(r"^\| (`algpt2.*?|`gpt2`) \|.*\| ([\d,]+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    stated = {name: count for names, count in rows for name in re.findall(r"`([\w-]+)`", names)}
    assert stated == {name: f"{parameter_count(ALGPT2Config.from_preset(name)):,}" for name in PRESETS}
