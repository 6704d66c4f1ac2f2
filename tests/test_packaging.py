"""Each framework is imported on its own, and documentation says what the code does."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys

import pytest
from isolation import ROOT, TENSORFLOW, TORCH, run_without

MODULES = sorted(module.name for module in pkgutil.walk_packages([str(ROOT / "algpt2")], prefix="algpt2."))
WITHOUT_FRAMEWORKS = (
    "convert.__main__",
    "convert.comparison",
    "convert.conversion",
    "convert.export",
    "convert.plain_gpt2",
    "convert.inspection",
    "convert.sides.runtimes",
    "convert.sides",
    "convert.verification",
)


@pytest.mark.parametrize(
    ("module", "blocked"),
    [
        *((module, TORCH + TENSORFLOW) for module in MODULES),
        ("algpt2", TORCH + TENSORFLOW),
        ("algpt2_pt", TENSORFLOW),
        ("algpt2_pt.train", TENSORFLOW),
        ("algpt2_tf", TORCH),
        ("algpt2_tf.train", TORCH),
        *((module, TORCH + TENSORFLOW) for module in WITHOUT_FRAMEWORKS),
        ("convert.sides.pytorch", TENSORFLOW),
        ("convert.sides.tensorflow", TORCH),
    ],
)
def test_a_framework_is_imported_without_the_other(module, blocked):
    result = run_without(blocked, f"import {module}")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("before", "backend", "message"),
    [
        ("", None, None),
        ("", "tensorflow", None),
        ("", "jax", "KERAS_BACKEND is 'jax'"),
        ("", "torch", "KERAS_BACKEND is 'torch'"),
        ("import keras", "torch", "already loaded with 'torch'"),
    ],
)
def test_keras_backend(before, backend, message):
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    result = subprocess.run(
        [sys.executable, "-c", f"{before}\nimport algpt2_tf, keras; print(keras.config.backend())"],
        env={**environment, **({"KERAS_BACKEND": backend} if backend else {})},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    if message is None:
        assert result.returncode == 0 and result.stdout == "tensorflow\n", result.stderr
    else:
        assert result.returncode != 0 and message in result.stderr


def public_modules():
    for package in ("algpt2", "algpt2_pt", "algpt2_tf", "convert"):
        for module in pkgutil.walk_packages([str(ROOT / package)], prefix=f"{package}."):
            if not module.name.endswith("__main__"):
                yield module.name


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


def readme_blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def checkpoint(text_tokenizer, tmp_path_factory):
    """A directory named as the README names it, with the weights of both frameworks."""
    from models import save_checkpoint, tiny_config

    from convert import pt2tf

    directory = tmp_path_factory.mktemp("readme")
    config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=0)
    save_checkpoint(directory / "checkpoint", config, tokenizer=text_tokenizer)
    pt2tf(directory / "checkpoint")
    return directory


@pytest.mark.parametrize("code", readme_blocks("python"), ids=lambda code: code.splitlines()[0])
def test_python_examples_of_the_readme_run(code, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_commands_of_the_readme_exist(capsys):
    commands = re.findall(r"python -m ([\w.]+) ?((?:[^\n`]|\\\n)*)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert {command for command, _ in commands} >= {"algpt2_tf.train", "algpt2_pt.train", "convert"}
    for module, arguments in commands:
        loaded = importlib.import_module(f"{module}.__main__" if module == "convert" else module)
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
