"""A web page that continues texts in the browser, by transformers.js: files for any static server."""

import json
import shutil
from importlib import resources
from pathlib import Path

from algpt2.checkpoints.weights import parameter_count
from algpt2.data.encoding import start_ids
from algpt2.errors import InputError
from algpt2.training.compare import read_runs
from algpt2.training.model_card import text_name, validation_name
from algpt2.training.run_directory import ARGUMENTS_FILE
from convert.exports import FORMATS, onnx

OWN_FILES = ("model.json", "index.html", "*.js", "style.css", "lib/*", "model/*")
# What transformers.js calls a precision.
DTYPES = {None: "fp32", "int8": "q8", "q4": "q4"}

# The versions that were tested; onnxruntime-web's is the one that transformers.js asks for.
TRANSFORMERS_JS = ("@huggingface/transformers", "4.3.1")
ONNXRUNTIME_WEB = ("onnxruntime-web", "1.31.0-dev.20260914-8d85527a0")
CDN = "https://cdn.jsdelivr.net/npm/{}@{}/{}"
# The package and its file, by the role in model.json and the name in lib/. Not .mjs: some servers do not know it as
# JavaScript. Of the builds of ONNX Runtime the one without WebGPU is half as large.
LIBRARIES = {
    "transformers": (TRANSFORMERS_JS, "dist/transformers.min.js", "transformers.min.js"),
    "runtime": (ONNXRUNTIME_WEB, "dist/ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.js"),
    "wasm": (ONNXRUNTIME_WEB, "dist/ort-wasm-simd-threaded.wasm", "ort-wasm-simd-threaded.wasm"),
}


def write(checkpoint, path, quantize=None, assets=None):
    """Write the page, what it says of the model, the ONNX directory in model/, and with `assets` the libraries in lib/.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint` with a tokenizer.
        path: `Path` of a new directory.
        quantize: str, `"int8"` or `"q4"`; `None` means float32.
        assets: path. The directory where npm installed transformers.js; `None` names its files on a CDN.

    Raises:
        InputError: if a library is not there, or the checkpoint has no tokenizer or cannot be written as ONNX.
    """
    checkpoint.require_tokenizer()
    if checkpoint.config.n_positions < 2:
        raise InputError(f"{checkpoint.directory}: n_positions is 1; a text to continue needs at least 2")
    sources = _installed(assets) if assets else None
    # A browser's products by rounded weights are several times as slow as those by float32.
    onnx.write(checkpoint, path / "model", quantize, unpack=True)
    for file in resources.files("convert.exports").joinpath("site").iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    described = {
        "name": checkpoint.directory.resolve().name,
        "dtype": DTYPES[quantize],
        "bytes": (path / "model" / onnx.FILES[quantize]).stat().st_size,
        "context": checkpoint.config.n_positions,
        "start": start_ids(checkpoint.tokenizer),
        "card": "model/README.md" if (path / "model" / "README.md").is_file() else None,
        "facts": facts(checkpoint),
        "libraries": _copied(sources, path / "lib") if sources else _on_cdn(),
    }
    description = json.dumps(described, indent=2, ensure_ascii=False)
    (path / FORMATS["web"].marker).write_text(f"{description}\n", encoding="utf-8")


def facts(checkpoint):
    """What a reader of the page may ask of a model: its size, its shape, and of a run what it was trained on.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.

    Returns:
        dict of str to str.
    """
    config = checkpoint.config
    known = {
        "Parameters": f"{parameter_count(config):,}",
        "Depth": f"{config.n_layer} applications of {_counted(config.n_block, 'block')}",
        "Width": f"{config.n_embd}, embedding {config.embedding_width}",
        "Context": f"{config.n_positions:,} tokens",
        "Vocabulary": f"{config.vocab_size:,} tokens",
    }
    if not (checkpoint.directory / ARGUMENTS_FILE).is_file():
        return known
    (run,) = read_runs([checkpoint.directory])
    row = run.row()
    known["Trained on"] = f"{text_name(run.arguments.get('dataset'))}, {_counted(row['tokens'], 'token')}"
    if row["last_eval_perplexity"] is not None:
        known["Perplexity"] = f"{row['last_eval_perplexity']:,.1f} on {validation_name(run.arguments)}"
    return known


def outputs(path, quantize=None):
    """The function of the model of a page, by ONNX Runtime; as `convert.exports.onnx.outputs`."""
    return onnx.outputs(path / "model", quantize)


def _counted(number, what):
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _on_cdn():
    return {role: CDN.format(*package, file) for role, (package, file, _) in LIBRARIES.items()}


def _installed(assets):
    """The `Path` of every library by its name in lib/, and of the licences."""
    assets, found = Path(assets), {}
    packages = assets / "node_modules" if (assets / "node_modules").is_dir() else assets
    for (name, _), file, target in LIBRARIES.values():
        # npm puts a package that another one needs in a version of its own below that one.
        places = [packages / TRANSFORMERS_JS[0] / "node_modules" / name, packages / name]
        place = next((place for place in places if (place / file).is_file()), None)
        if place is None:
            raise InputError(
                f"--assets {assets}: has no {name}/{file}; "
                f"run npm install --ignore-scripts {'@'.join(TRANSFORMERS_JS)} in it"
            )
        found[target] = place / file
        if (place / "LICENSE").is_file():
            found[f"LICENSE-{name.rpartition('/')[2]}"] = place / "LICENSE"
    return found


def _copied(sources, directory):
    directory.mkdir()
    for name, source in sources.items():
        shutil.copyfile(source, directory / name)
    return {role: f"lib/{name}" for role, (_, _, name) in LIBRARIES.items()}
