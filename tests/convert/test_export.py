"""Exports of a checkpoint on the command line, each where only the packages it takes are installed."""

import errno
import importlib
import math
import os
import re
import shutil

import pytest
import tensorflow as tf
from command_lines import run
from isolation import TENSORFLOW, TORCH, run_without
from models import DEPTHS, random_weights, read_checkpoint, save_checkpoint, tiny_config

import convert.__main__
from algpt2.checkpoints.weights import parameter_count
from algpt2.errors import InputError
from convert.export import compare_export, export

# What is exported where a framework is missing: the format, the name of the output and the options.
EXPORTS = {
    "savedmodel": (TORCH, "savedmodel", "served/1", ()),
    "litert": (TORCH, "litert", "model.tflite", ()),
    "int8": (TORCH, "litert", "int8.tflite", ("--quantize", "int8", "--length", "12")),
    "onnx": (TENSORFLOW, "onnx", "onnx", ()),
    "onnx int8": (TENSORFLOW, "onnx", "onnx8", ("--quantize", "int8")),
    "onnx q4": (TENSORFLOW, "onnx", "onnx4", ("--quantize", "q4")),
    "gguf": (TENSORFLOW, "gguf", "model.gguf", ()),
    "gguf f16": (TENSORFLOW, "gguf", "model-f16.gguf", ("--quantize", "f16")),
    "gguf q8_0": (TENSORFLOW, "gguf", "model-q8.gguf", ("--quantize", "q8_0")),
}
SUFFIXES = {"litert": ".tflite", "gguf": ".gguf"}
ROUNDED = ["Kullback-Leibler divergence, nats a token", "share of positions with another likeliest token"]


@pytest.fixture(scope="module")
def config(text_tokenizer):
    depths = {**DEPTHS, "residual_multiplier": 0.1}
    return tiny_config(vocab_size=len(text_tokenizer), n_embd=64, n_head=2, layer_schedule=[0, 0], **depths)


@pytest.fixture(scope="module")
def checkpoint(config, text_tokenizer, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"), config, tokenizer=text_tokenizer)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    """The directory of the exports, and what their commands print, by the name of the export."""
    directory, printed = tmp_path_factory.mktemp("exports"), {}
    for blocked in (TORCH, TENSORFLOW):
        names = [name for name in EXPORTS if EXPORTS[name][0] == blocked]
        code = "import convert.__main__\n"
        for name in names:
            _, to, output, options = EXPORTS[name]
            arguments = ["export", str(checkpoint), "--to", to, "--output", str(directory / output), *options]
            code += f"print('export of', {name!r}); convert.__main__.main({arguments!r})\n"
        result = run_without(blocked, code)
        assert result.returncode == 0, result.stderr
        _, *parts = re.split(r"^export of (.*)$", result.stdout, flags=re.MULTILINE)
        printed |= dict(zip(parts[::2], parts[1::2], strict=True))
    return directory, printed


@pytest.fixture
def other_checkpoint(checkpoint, tmp_path):
    """The checkpoint with another final normalization."""
    shutil.copytree(checkpoint, tmp_path / "other")
    config, weights = read_checkpoint(checkpoint)
    weights["transformer.ln_f.weight"] = -weights["transformer.ln_f.weight"]
    return save_checkpoint(tmp_path / "other", config, weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(EXPORTS))
def test_an_export_is_compared_and_its_size_printed(name, config, exported):
    directory, printed = exported
    rows = ["greedy continuation"] if name == "savedmodel" else ROUNDED if "--quantize" in EXPORTS[name][3] else []
    output = directory / EXPORTS[name][2]
    files = [output] if output.is_file() else [file for file in output.rglob("*") if file.is_file()]
    size, count = sum(file.stat().st_size for file in files), parameter_count(config)
    line = f"wrote {output}: {size:,} bytes; {count:,} parameters take {4 * count:,} in float32"
    assert line in printed[name].splitlines()
    cells = [line.split("|") for line in printed[name].splitlines() if line.startswith("| ")]
    logits = ["largest logit difference, unpadded", "largest logit difference, padded"]
    assert [row[1].strip() for row in cells[1:]] == [*logits, *rows]
    assert {row[-2].strip() for row in cells[1:]} == {"ok"}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(EXPORTS))
def test_an_export_of_another_checkpoint_fails(name, exported, checkpoint, other_checkpoint):
    _, to, output, options = EXPORTS[name]
    given = dict(zip(options[::2], options[1::2], strict=True))
    quantize, length = given.get("--quantize"), 12 if "--length" in given else None
    artefact = exported[0] / output
    assert all(comparison.passed for comparison in compare_export(checkpoint, to, artefact, quantize, length)[1])
    _, comparisons = compare_export(other_checkpoint, to, artefact, quantize, length)
    failed = [comparison.name for comparison in comparisons if not comparison.passed]
    assert {"largest logit difference, unpadded", "largest logit difference, padded"} <= set(failed)
    assert ("greedy continuation" in failed) == (name == "savedmodel")
    assert ("Kullback-Leibler divergence, nats a token" in failed) == (quantize is not None)


@pytest.mark.parametrize("damage", [lambda content: content[:140], lambda content: content[:64] + b"\xff" * 999, None])
def test_a_gguf_file_that_is_damaged(damage, checkpoint, tmp_path):
    path = tmp_path / "model.gguf"
    export(checkpoint, "gguf", path)
    content = path.read_bytes()
    path.unlink()
    if damage:
        path.write_bytes(damage(content))
    else:
        os.mkfifo(path)
    with pytest.raises(InputError, match=r"model\.gguf: (not readable as GGUF|is not an ordinary file)"):
        compare_export(checkpoint, "gguf", path)


@pytest.mark.slow
def test_a_saved_model_is_compared_wherever_it_is(checkpoint, capsys, tmp_path):
    target = tmp_path / "a[1]*? b\\c"
    code, out, err = run(capsys, convert.__main__, "export", checkpoint, "--to", "savedmodel", "--output", target)
    assert code == 0 and "greedy continuation" in out, err


@pytest.mark.slow
def test_a_difference_beyond_tolerance_is_the_exit_code(exported, other_checkpoint, capsys, monkeypatch):
    artefact = exported[0] / "model.tflite"
    monkeypatch.setattr("convert.export.export", lambda *arguments, **options: artefact)
    arguments = ("export", other_checkpoint, "--to", "litert", "--output", artefact)
    code, out, err = run(capsys, convert.__main__, *arguments)
    assert code == 1
    assert out.count("FAILED") == 2 and "the models differ beyond tolerance" in err
    code, out, _ = run(capsys, convert.__main__, *arguments, "--no-verify")
    assert code == 0 and "FAILED" not in out


@pytest.mark.parametrize(
    ("to", "output", "options", "message"),
    [
        ("litert", "model.bin", (), r"model\.bin: a file for litert is named with \.tflite at the end"),
        ("gguf", "there.gguf", (), r"there\.gguf: is there already; give --force"),
        ("savedmodel", "thesis", ("--force",), r"thesis: is a directory without saved_model\.pb"),
        ("savedmodel", "there.gguf", ("--force",), r"there\.gguf: is not a directory"),
        ("onnx", "thesis", ("--force",), r"thesis: is a directory without onnx"),
        ("gguf", "folder.gguf", ("--force",), r"folder\.gguf: is a directory"),
        ("onnx", "new", ("--quantize", "q8_0"), "--quantize q8_0 is not for --to onnx, which takes int8, q4"),
        ("savedmodel", "1", ("--quantize", "int8"), "is not for --to savedmodel, which takes none"),
        ("savedmodel", "1", ("--length", "9"), "--length is for --to litert"),
        ("litert", "model.tflite", ("--length", "81"), "--length 81 is more than n_positions 80"),
    ],
)
def test_wrong_input_changes_nothing(to, output, options, message, checkpoint, capsys, tmp_path):
    (tmp_path / "there.gguf").write_text("precious")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run(
        capsys, convert.__main__, "export", checkpoint, "--to", to, "--output", tmp_path / output, *options
    )
    assert code == 2 and re.search(message, err) and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.gguf").read_text() == "precious"


@pytest.mark.parametrize("to", ["onnx", "web"])
def test_an_export_is_replaced_alone(to, checkpoint, capsys, tmp_path):
    def command(source, output):
        arguments = ["--to", to, "--output", output, "--quantize", "q4", "--no-verify", "--force"]
        code, _, err = run(capsys, convert.__main__, "export", source, *arguments)
        assert "Traceback" not in err
        return code, err

    source, output = tmp_path / "out" / "checkpoint", tmp_path / "out"
    assert command(checkpoint, output) == (0, "")
    # Once more, over what it wrote.
    export(checkpoint, to, output, force=True)
    assert command(checkpoint, output)[0] == 0
    (graph,) = output.rglob("*.onnx")
    assert graph.name == "model_q4.onnx"

    shutil.copytree(checkpoint, source)
    (source / "onnx").mkdir()
    (source / "model.json").write_text("{}")
    (tmp_path / "project" / "onnx").mkdir(parents=True)
    (tmp_path / "project" / "model.json").write_text("{}")
    (tmp_path / "project" / "code.py").write_text("precious")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for origin, target, message in (
        (source, source, f"{source}: is or holds the checkpoint"),
        (source, output, f"{output}: is or holds the checkpoint"),
        (checkpoint, output, f"{output}: holds checkpoint/"),
        (checkpoint, tmp_path / "project", "project: holds code.py, which is no part of an export to"),
    ):
        code, err = command(origin, target)
        assert code == 2 and message in err, err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("value", "quantize", "message"),
    [
        (math.nan, "none", "transformer.h.0.mlp.c_fc.weight holds NaN or infinity"),
        (-math.inf, "q4_0", "transformer.h.0.mlp.c_fc.weight holds NaN or infinity"),
        (-1e5, "f16", "transformer.h.0.mlp.c_fc.weight holds 1e+05, F16 at most 6.55e+04; take another --quantize"),
        (1e5, "q8_0", None),
    ],
)
def test_numbers_that_gguf_cannot_hold(value, quantize, message, text_tokenizer, capsys, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), n_embd=64, n_head=2)
    weights = random_weights(config, "float32")
    weights["transformer.h.0.mlp.c_fc.weight"][0, 0] = value
    source, output = save_checkpoint(tmp_path / "source", config, weights, text_tokenizer), tmp_path / "a.gguf"
    arguments = ["--to", "gguf", "--output", output, "--quantize", quantize, "--no-verify"]
    code, _, err = run(capsys, convert.__main__, "export", source, *arguments)
    assert output.exists() == (code == 0) == (message is None)
    assert message is None or message in err


@pytest.mark.slow
@pytest.mark.parametrize("to", ["savedmodel", "litert", "onnx"])
@pytest.mark.parametrize("n_positions", [1, 2])
def test_the_shortest_models(n_positions, to, capsys, tmp_path):
    directory = save_checkpoint(tmp_path / "checkpoint", tiny_config(n_positions=n_positions))
    output = tmp_path / f"model{SUFFIXES.get(to, '')}"
    code, out, err = run(capsys, convert.__main__, "export", directory, "--to", to, "--output", output)
    assert code == 0 and "FAILED" not in out, err


@pytest.mark.parametrize("to", ["savedmodel", "litert", "onnx", "gguf"])
def test_a_checkpoint_that_cannot_be_read(to, checkpoint, capsys, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "damaged")
    weights = tmp_path / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    output = tmp_path / "out" / f"model{SUFFIXES.get(to, '')}"
    for directory, message in (
        ("damaged", "model.safetensors: not readable"),
        ("nothing", "nothing: no such directory"),
    ):
        code, _, err = run(capsys, convert.__main__, "export", tmp_path / directory, "--to", to, "--output", output)
        assert code == 2 and message in err and "Traceback" not in err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("blocked", "to", "message"),
    [
        (("onnx", "onnxruntime"), "onnx", r"needs onnx, onnxruntime; run pip install 'algpt2\[onnx\]'"),
        (("gguf",), "gguf", r"needs gguf; run pip install 'algpt2\[export\]'"),
        (("tensorflow", "ai_edge_litert"), "litert", r"needs tensorflow, ai_edge_litert; .* 'algpt2\[tf,export\]'"),
        (("tensorflow",), "savedmodel", r"needs tensorflow; run pip install 'algpt2\[tf\]'"),
    ],
)
def test_missing_packages_are_named(blocked, to, message, checkpoint, monkeypatch, tmp_path):
    find_spec = convert.export.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in blocked else find_spec(name))
    with pytest.raises(InputError, match=message):
        export(checkpoint, to, tmp_path / "output")


def test_what_no_file_can_hold_is_refused(checkpoint, monkeypatch, tmp_path):
    modules = {"onnx": "algpt2.onnx.graph", "litert": "convert.exports.litert"}
    for output, to in (("directory", "onnx"), ("model.tflite", "litert")):
        monkeypatch.setattr(importlib.import_module(modules[to]), "FILE_LIMIT", 1000)
        with pytest.raises(InputError, match="the 2 GB of a file"):
            export(checkpoint, to, tmp_path / output)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        tf.errors.ResourceExhaustedError(None, None, "No space left on device"),
    ],
)
def test_nothing_is_half_written(error, checkpoint, monkeypatch, tmp_path):
    def write_half(model, path, *arguments):
        path.mkdir()
        (path / "saved_model.pb").write_text("half")
        raise error

    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_text("whole")
    monkeypatch.setattr("algpt2_tf.export.export_saved_model", write_half)
    for output, force in ((tmp_path / "1", True), (tmp_path / "2", False)):
        with pytest.raises(InputError, match="No space left on device"):
            export(checkpoint, "savedmodel", output, force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert (tmp_path / "1" / "saved_model.pb").read_text() == "whole"


@pytest.mark.slow
def test_a_saved_model_replaces_an_earlier_one_as_a_whole(checkpoint, monkeypatch, text_tokenizer, tmp_path):
    def write(model, path, stop_token_ids):
        path.mkdir()
        (path / "saved_model.pb").write_text(f"stops at {stop_token_ids}")

    monkeypatch.setattr("algpt2_tf.export.export_saved_model", write)
    config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=[5, 6])
    save_checkpoint(tmp_path / "checkpoint", config)
    output = tmp_path / "served" / "1"
    assert export(tmp_path / "checkpoint", "savedmodel", output) == output
    assert (output / "saved_model.pb").read_text() == "stops at (5, 6)"
    (output / "assets").mkdir()
    # A tokenizer knows better than a configuration which token ends a text.
    text_tokenizer.save_pretrained(tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", "savedmodel", output, force=True)
    assert [path.name for path in output.iterdir()] == ["saved_model.pb"]
    assert (output / "saved_model.pb").read_text() == f"stops at ({text_tokenizer.eos_token_id},)"
