"""What is no checkpoint itself but makes one: a GGUF file of a GPT-2, and an adapter of PEFT with its base."""

import contextlib
import importlib.util
import tempfile
import warnings
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from algpt2.checkpoints.checkpoint import open_checkpoint, opened, write_dialect
from algpt2.checkpoints.directories import ADAPTER_FILE
from algpt2.checkpoints.formats import SAFETENSORS, find_weights
from algpt2.checkpoints.weight_maps import gpt2
from algpt2.checkpoints.weights import LANGUAGE_MODELS, check_weights, head_shapes, weight_shapes
from algpt2.data.tokenizer import has_tokenizer, load_tokenizer, save_tokenizer, special_token_ids
from algpt2.errors import InputError
from convert.gguf_layout import stored_config, their_name

# The classes that PEFT's tasks are of; without a task it is the base's own.
TASKS = {
    "CAUSAL_LM": "ALGPT2LMHeadModel",
    "SEQ_CLS": "ALGPT2ForSequenceClassification",
    "TOKEN_CLS": "ALGPT2ForTokenClassification",
    "QUESTION_ANS": "ALGPT2ForQuestionAnswering",
}


def opened_source(source, base=None):
    """A checkpoint of any system, or the one that a GGUF file or an adapter makes.

    What is made stands in a temporary directory, which goes with the checkpoint.

    Args:
        source: str or path. A checkpoint directory or the id of a hub repository; a GGUF file of a GPT-2; or the
            directory of an adapter.
        base: str or path. The checkpoint that an adapter is of; by default the one that it names.

    Returns:
        `algpt2.checkpoints.checkpoint.Checkpoint`.

    Raises:
        InputError: if it cannot be read, a package is missing, or the adapter does not fit its base.

    Example:
        >>> opened_source("model-q8_0.gguf").config.n_layer  # doctest: +SKIP
        12
        >>> opened_source("adapter", base="runs/algpt2").dtype  # doctest: +SKIP
        'float32'
    """
    path = Path(source)
    is_adapter = (path / ADAPTER_FILE).is_file()
    if base is not None and not is_adapter:
        raise InputError(f"--base is the checkpoint of an adapter; {source} holds no {ADAPTER_FILE}")
    if path.suffix == ".gguf" and not path.exists():
        raise InputError(f"{path}: no such file")
    if not is_adapter and not path.is_file():
        _refuse_exports(path)
        return opened(source)
    with contextlib.ExitStack() as stack:
        made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="algpt2-")))
        if is_adapter:
            _merge(path, base, made)
        else:
            _read_gguf(path, made)
        checkpoint = replace(open_checkpoint(made), path=path)
        weakref.finalize(checkpoint, stack.pop_all().close)
    return checkpoint


def _refuse_exports(directory):
    if not directory.is_dir() or find_weights(directory):
        return
    for pattern in ("*.gguf", "*.onnx", "onnx/*.onnx"):
        for found in sorted(directory.glob(pattern)):
            if found.suffix == ".gguf":
                raise InputError(f"{directory}: is a directory with a GGUF file; give the file itself, {found}")
            raise InputError(f"{found}: weights are not read back from ONNX; give the checkpoint it was exported from")


def _read_gguf(path, output):
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise InputError(f"{path}: is not a GGUF file; expected one, or the directory of a checkpoint")
    _require("gguf", "'algpt2[export]'")
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        architecture = reader.get_field("general.architecture").contents()
        if architecture != "gpt2":
            raise InputError(f"{path}: is of the architecture {architecture!r}; expected 'gpt2'")
        splitter = reader.get_field("tokenizer.ggml.pre")
        if splitter and splitter.contents() != "gpt-2":
            # transformers would split texts as GPT-2 all the same.
            raise InputError(f"{path}: its tokenizer splits texts as {splitter.contents()!r}; expected 'gpt-2'")
        theirs = stored_config(reader)
        tensors = {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        config = gpt2.gpt2_config({**theirs.to_dict(), **special_token_ids(tokenizer)})
    except InputError:
        raise
    except Exception as error:  # of whatever kind the readers raise
        raise InputError(f"{path}: not readable as a GGUF file of a GPT-2 ({error}); get it again") from error
    names = {their_name(name): name for name in weight_shapes(config)}
    weights = {names.get(name, name): array for name, array in tensors.items()}
    check_weights(config, weights, source=path)
    # Older converters of llama.cpp wrote a tied matrix twice.
    head = weights.get("lm_head.weight")
    theirs.tie_word_embeddings = head is None or np.array_equal(head, weights["transformer.wte.weight"])
    theirs.save_pretrained(output)
    write_dialect(output, SAFETENSORS, gpt2.PYTORCH, config, weights)
    save_tokenizer(tokenizer, output)


def _merge(directory, base, output):
    _require("peft", "peft")
    import peft

    try:
        config = peft.PeftConfig.from_pretrained(directory)
        tensors = peft.utils.load_peft_weights(directory, device="cpu")
    except Exception as error:  # of whatever kind PEFT raises
        raise InputError(f"{directory}: not readable as an adapter of PEFT ({error}); save it again") from error
    if config.is_prompt_learning:
        kind = config.peft_type.value
        raise InputError(f"{directory}: an adapter of {kind} changes no weights; leave it apart, and load it by PEFT")
    checkpoint = _open_base(directory, base or config.base_model_name_or_path)
    model = _base_model(checkpoint, directory, config.task_type, tensors)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = peft.PeftModel.from_pretrained(model, directory, config=config)
            # Once more for its report: tensors that have no place are left out in silence.
            loaded = model.load_adapter(directory, model.active_adapter)
            if others := loaded.missing_keys + loaded.unexpected_keys:
                raise ValueError(f"{len(others)} tensors are on one side only, such as {others[0]}")
            model = model.merge_and_unload()
    except Exception as error:
        raise InputError(
            f"{directory}: does not fit {checkpoint.directory} ({error}); name what it was trained on by --base"
        ) from error
    model.save_pretrained(output)
    checkpoint.generation_config().save_pretrained(output)
    tokenizer = load_tokenizer(directory) if has_tokenizer(directory) else checkpoint.tokenizer
    if tokenizer:
        save_tokenizer(tokenizer, output)


def _open_base(directory, base):
    if not base:
        raise InputError(f"{directory / ADAPTER_FILE}: names no base; name what it was trained on by --base")
    try:
        return opened(base)
    except InputError as error:
        raise InputError(f"{directory}: its base is not readable ({error}); name another place by --base") from error


def _base_model(checkpoint, directory, task, tensors):
    """The model that an adapter was trained on: a GPT-2 as transformers has it, all else as ALGPT2."""
    import transformers

    from algpt2_pt import models
    from algpt2_pt.weights import to_torch

    model_class, labels = TASKS.get(task, checkpoint.architecture), {}
    if model_class not in (checkpoint.architecture, *LANGUAGE_MODELS):
        # The head came with the adapter, and with it the number of classes.
        name = next(iter(head_shapes(checkpoint.config)[model_class]))
        if f"base_model.model.{name}" not in tensors:
            raise InputError(f"{directory}: neither it nor {checkpoint.directory} holds {name}; give another --base")
        labels = {"num_labels": len(tensors[f"base_model.model.{name}"])}
    config = checkpoint.model_config(**labels)
    if checkpoint.dialect not in (gpt2.PYTORCH, gpt2.KERAS_2, gpt2.KERAS_HUB):
        return getattr(models, model_class).from_checkpoint(checkpoint, config=config, dtype="auto")
    # Its matrices have their inputs first, which an adapter that keeps whole matrices goes by.
    weights = gpt2.PYTORCH.from_canonical(config, checkpoint.read_weights())
    state_dict = {name: to_torch(np.ascontiguousarray(array)) for name, array in weights.items()}
    model_class = getattr(transformers, model_class.removeprefix("AL"))
    config = gpt2.as_gpt2_config(config)
    return model_class.from_pretrained(None, config=config, state_dict=state_dict, dtype=checkpoint.dtype)


def _require(package, install):
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{package} is not installed; run pip install {install}")
