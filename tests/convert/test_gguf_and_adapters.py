"""Checkpoints made of GGUF files and of PEFT's adapters, against what transformers and PEFT compute."""

import copy
import gc
import importlib.util
import json
import shutil
import tempfile

import gguf
import numpy as np
import pytest
import torch
from command_lines import run
from models import DEPTHS, random_weights, relative_difference, save_checkpoint, tiny_config
from peft import AdaLoraConfig, IA3Config, LoraConfig, PrefixTuningConfig, get_peft_model
from tokenizers import AddedToken
from transformers import AutoConfig, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

import convert.__main__ as main_module
from algpt2_pt import ALGPT2ForSequenceClassification, ALGPT2LMHeadModel
from algpt2_tf import TFALGPT2LMHeadModel, TFALGPT2TextClassifier
from convert import pt2tf, to_gpt2, to_pt, to_tf
from convert.export import export
from convert.exports import FORMATS

IDS = torch.arange(24).reshape(2, 12)
TEXTS = ["The value of an object", " <|endoftext|>\n\n  é漢\U0001f600 don't [PAD601]", "<|tool|>self.x"]


def logits(directory):
    model = ALGPT2LMHeadModel.from_pretrained(directory).eval()
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture(scope="module")
def files(text_tokenizer, tmp_path_factory):
    """A directory with an ALGPT2, the GPT-2 that it becomes, and GGUF files of that."""
    directory = tmp_path_factory.mktemp("gguf")
    tokenizer = type(text_tokenizer)(tokenizer_object=text_tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    tokenizer.add_tokens([AddedToken("<|tool|>", special=False, normalized=False)])
    config = tiny_config(vocab_size=len(tokenizer) + 7, n_embd=64, n_head=4, n_inner=96, eos_token_id=0, **DEPTHS)
    save_checkpoint(directory / "algpt2", config, tokenizer=tokenizer)
    to_gpt2(directory / "algpt2", directory / "gpt2")
    for quantize in (None, "f16", "q8_0", "q4_0"):
        export(directory / "gpt2", "gguf", directory / f"{quantize}.gguf", quantize)
    return directory


@pytest.mark.parametrize("quantize", [None, "f16", "q8_0", "q4_0"])
def test_a_gguf_file_comes_back_as_transformers_reads_it(quantize, files, tmp_path):
    path = files / f"{quantize}.gguf"
    directory = to_pt(path, tmp_path / "back").directory
    found = logits(directory)
    theirs = GPT2LMHeadModel.from_pretrained(
        files, gguf_file=path.name, config=AutoConfig.from_pretrained(files / "gpt2"), dtype=torch.float32
    )
    with torch.no_grad():
        assert relative_difference(theirs.eval()(IDS).logits, found) < 1e-5
    # What rounding may change, to the model that was exported.
    tolerance = FORMATS["gguf"].quantizations[quantize][0] if quantize else 1e-5
    assert relative_difference(logits(files / "algpt2"), found) < tolerance
    config, source = AutoConfig.from_pretrained(directory), AutoConfig.from_pretrained(files / "algpt2")
    for field in ("n_positions", "n_embd", "n_inner", "n_head", "n_layer", "layer_norm_epsilon", "eos_token_id"):
        assert getattr(config, field) == getattr(source, field), field


@pytest.mark.slow
def test_a_gguf_file_in_keras(files, capsys, tmp_path):
    code, out, err = run(capsys, main_module, "to-tf", files / "q8_0.gguf", "--output", tmp_path / "back")
    assert code == 0 and "transformers' GPT-2 and TensorFlow" in out and "FAILED" not in out, err
    model = TFALGPT2LMHeadModel.from_pretrained(tmp_path / "back")
    found = model({"token_ids": IDS.numpy(), "padding_mask": np.ones_like(IDS.numpy())})
    assert relative_difference(logits(to_pt(files / "q8_0.gguf", tmp_path / "pt").directory), found) < 1e-5


def test_its_tokenizer_is_the_one_that_was_exported(files, tmp_path):
    found = AutoTokenizer.from_pretrained(to_pt(files / "None.gguf", tmp_path / "back").directory)
    expected = AutoTokenizer.from_pretrained(files / "algpt2")
    for text in TEXTS:
        assert found(text)["input_ids"] == expected(text)["input_ids"], text
        assert found.decode(found(text)["input_ids"]) == text
    assert found.eos_token == "<|endoftext|>" and found.model_max_length == 80


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_is_tied_where_it_is_the_embedding(tied, text_tokenizer, tmp_path):
    """Older converters of llama.cpp wrote a tied matrix twice."""
    config = tiny_config(vocab_size=len(text_tokenizer), n_embd=64, n_head=4, embedding_size=None, eos_token_id=0)
    config.tie_word_embeddings = False
    weights = random_weights(config, "float32")
    if tied:
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
    source = save_checkpoint(tmp_path / "source", config, weights, text_tokenizer)
    export(source, "gguf", tmp_path / "model.gguf")
    assert any(tensor.name == "output.weight" for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors)
    back = to_pt(tmp_path / "model.gguf", tmp_path / "back").directory
    assert AutoConfig.from_pretrained(back).tie_word_embeddings is tied
    assert relative_difference(logits(source), logits(back)) < 1e-5


def llama(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def cut(share):
    return lambda content: content[: int(share * len(content))]


DAMAGES = {
    "empty": (cut(0), "is not a GGUF file"),
    "start": (lambda content: content[:100], "not readable as a GGUF file of a GPT-2"),
    "tokens": (cut(0.02), "not readable as a GGUF file of a GPT-2"),
    "half": (cut(0.5), "not readable as a GGUF file of a GPT-2"),
    "end": (lambda content: content[:-64], "not readable as a GGUF file of a GPT-2"),
    "name": (
        lambda content: content.replace(b"output_norm.bias", b"output_norm.bios"),
        "missing: transformer.ln_f.bias (64,); unexpected: output_norm.bios (64,)",
    ),
    "heads": (
        lambda content: content.replace(b"head_count\x04\0\0\0\x04", b"head_count\x04\0\0\0\x05"),
        "n_embd is 64, n_head 5",
    ),
    "splitter": (
        lambda content: content.replace(b"gpt-2", b"qwen2"),
        "its tokenizer splits texts as 'qwen2'; expected 'gpt-2'",
    ),
    "NaN": (lambda content: content[:-64] + b"\xff" * 64, "not finite: lm_head.weight holds NaN"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_gguf_file_is_one_line(damage, files, capsys, monkeypatch, tmp_path):
    change, message = DAMAGES[damage]
    (tmp_path / "model.gguf").write_bytes(change((files / "None.gguf").read_bytes()))
    refused(capsys, monkeypatch, tmp_path, tmp_path / "model.gguf", message)


def refused(capsys, monkeypatch, tmp_path, source, message, *options):
    """That a source is refused in one line with a message, and leaves nothing behind."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    code, _, err = run(capsys, main_module, "to-pt", source, "--output", tmp_path / "out", *options)
    lines = [line for line in err.splitlines() if "error" in line]
    assert code == 2 and len(lines) == 1 and message in lines[0] and "Traceback" not in err, err
    assert not (tmp_path / "out").exists() and not list((tmp_path / "temporary").iterdir())


def test_other_files_are_refused(files, capsys, monkeypatch, tmp_path):
    llama(tmp_path / "llama.gguf")
    for source, message in (
        (tmp_path / "llama.gguf", "llama.gguf: is of the architecture 'llama'; expected 'gpt2'"),
        (files / "algpt2" / "model.safetensors", "model.safetensors: is not a GGUF file"),
        (tmp_path / "nothing.gguf", "nothing.gguf: no such file"),
        (tmp_path, f"{tmp_path}: is a directory with a GGUF file; give the file itself, {tmp_path / 'llama.gguf'}"),
    ):
        refused(capsys, monkeypatch, tmp_path, source, message)
        (tmp_path / "temporary").rmdir()


def test_weights_are_not_read_back_from_onnx(files, capsys, monkeypatch, tmp_path):
    save_checkpoint(tmp_path / "algpt2", tiny_config(n_head=3))
    export(tmp_path / "algpt2", "onnx", tmp_path / "onnx")
    message = "onnx/onnx/model.onnx: weights are not read back from ONNX; give the checkpoint it was exported from"
    refused(capsys, monkeypatch, tmp_path, tmp_path / "onnx", message)


def test_what_is_made_on_the_way_goes_with_the_checkpoint(files, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = to_pt(files / "f16.gguf", tmp_path / "out")
    assert result.source.path == files / "f16.gguf" and result.source.directory.is_dir()
    del result
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def base(directory, **overrides):
    config = tiny_config(**overrides)
    return save_checkpoint(directory, config, random_weights(config, "float32"))


def save_adapter(model, options, directory):
    """Write an adapter with random weights; its logits, unmerged."""
    model = get_peft_model(model, copy.deepcopy(options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
        model.eval().save_pretrained(directory)
        return model(input_ids=IDS).logits


ADAPTERS = {
    "LoRA": LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"),
    "DoRA": LoraConfig(r=3, use_dora=True),
    "whole matrices": LoraConfig(r=3, modules_to_save=["c_proj"]),
    "AdaLoRA": AdaLoraConfig(total_step=10),
    "IA3": IA3Config(),
}


@pytest.mark.parametrize("options", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("kind", ["algpt2", "gpt2"])
def test_an_adapter_is_merged_into_the_base_that_it_names(kind, options, capsys, tmp_path):
    torch.manual_seed(0)
    if kind == "algpt2":
        model = ALGPT2LMHeadModel.from_pretrained(base(tmp_path / "base"))
    else:
        config = GPT2Config(vocab_size=97, n_positions=40, n_embd=24, n_layer=3, n_head=3, initializer_range=0.3)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
        model = GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        plain = model.eval()(IDS).logits
    adapted = save_adapter(model, options, tmp_path / "adapter")
    assert relative_difference(plain, adapted) > 1e-3
    (tmp_path / "base" / "generation_config.json").write_text('{"temperature": 0.7, "do_sample": true}')
    code, out, err = run(capsys, main_module, "to-pt", tmp_path / "adapter", "--output", tmp_path / "merged")
    assert code == 0 and "FAILED" not in out, err
    assert relative_difference(adapted, logits(tmp_path / "merged")) < 1e-5
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())["temperature"] == 0.7


@pytest.mark.slow
def test_a_base_in_keras_and_a_result_in_keras(text_tokenizer, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer), eos_token_id=0)
    source = save_checkpoint(tmp_path / "base", config, random_weights(config, "float32"), text_tokenizer)
    adapted = save_adapter(ALGPT2LMHeadModel.from_pretrained(source), LoraConfig(r=3), tmp_path / "adapter")
    keras = pt2tf(source, tmp_path / "keras").directory
    shutil.rmtree(source)
    merged = to_tf(tmp_path / "adapter", tmp_path / "merged", base=keras).directory
    model = TFALGPT2LMHeadModel.from_pretrained(merged)
    found = model({"token_ids": IDS.numpy(), "padding_mask": np.ones_like(IDS.numpy())})
    assert relative_difference(adapted, found) < 1e-5
    assert list(model.preprocessor.tokenizer(TEXTS[0])) == text_tokenizer(TEXTS[0])["input_ids"]


@pytest.mark.parametrize("model_class", [ALGPT2ForSequenceClassification, GPT2ForSequenceClassification])
def test_the_head_of_a_classifier_comes_with_the_adapter(model_class, capsys, tmp_path):
    """The base is a language model; PEFT keeps what the head learned, and its number of classes."""
    torch.manual_seed(0)
    if model_class is ALGPT2ForSequenceClassification:
        base(tmp_path / "base", pad_token_id=96)
    else:
        config = GPT2Config(vocab_size=97, n_positions=40, n_embd=24, n_layer=2, n_head=3, pad_token_id=96)
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    model = model_class.from_pretrained(tmp_path / "base", num_labels=4)
    adapted = save_adapter(model, LoraConfig(r=3, task_type="SEQ_CLS"), tmp_path / "adapter")
    assert adapted.shape == (2, 4)
    code, out, err = run(capsys, main_module, "to-tf", tmp_path / "adapter", "--output", tmp_path / "merged")
    assert code == 0 and "FAILED" not in out, err
    model = TFALGPT2TextClassifier.from_pretrained(tmp_path / "merged")
    found = model({"token_ids": IDS.numpy(), "padding_mask": np.ones_like(IDS.numpy())})
    assert relative_difference(adapted, found) < 1e-5


def test_the_tokenizer_of_an_adapter_comes_before_that_of_its_base(text_tokenizer, tmp_path):
    config = tiny_config(vocab_size=len(text_tokenizer) + 1)
    source = save_checkpoint(tmp_path / "base", config, random_weights(config, "float32"), text_tokenizer)
    save_adapter(ALGPT2LMHeadModel.from_pretrained(source), LoraConfig(r=3), tmp_path / "adapter")
    changed = AutoTokenizer.from_pretrained(source)
    changed.add_tokens("<|user|>")
    changed.save_pretrained(tmp_path / "adapter")
    merged = to_pt(tmp_path / "adapter", tmp_path / "merged").directory
    assert AutoTokenizer.from_pretrained(merged)("<|user|>")["input_ids"] == [len(text_tokenizer)]


def without_base(adapter):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": None}))


def shorter(adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


WRONG = {
    "no base": (without_base, None, "adapter_config.json: names no base; name what it was trained on by --base"),
    "base gone": (lambda adapter: shutil.rmtree(adapter.parent / "base"), None, "its base is not readable"),
    "cut": (shorter, None, "adapter: not readable as an adapter of PEFT"),
    "other width": (None, {"n_embd": 48}, "size mismatch for base_model.model.transformer.h.0.attn.c_attn.lora_A"),
    "fewer blocks": (None, {"layer_schedule": [0, 0, 0]}, "(2 tensors are on one side only, such as base_model.model"),
    "more blocks": (None, {"layer_schedule": [0, 1, 2]}, "(2 tensors are on one side only, such as base_model.model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_adapter_without_its_base_is_one_line(case, capsys, monkeypatch, tmp_path):
    change, overrides, message = WRONG[case]
    save_adapter(ALGPT2LMHeadModel.from_pretrained(base(tmp_path / "base")), LoraConfig(r=3), tmp_path / "adapter")
    if change:
        change(tmp_path / "adapter")
    options = ("--base", base(tmp_path / "other", **overrides)) if overrides else ()
    refused(capsys, monkeypatch, tmp_path, tmp_path / "adapter", message, *options)


def test_adapters_that_are_no_change_of_weights(capsys, monkeypatch, tmp_path):
    model = ALGPT2LMHeadModel.from_pretrained(base(tmp_path / "base"))
    options = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    get_peft_model(model, options).save_pretrained(tmp_path / "adapter")
    refused(capsys, monkeypatch, tmp_path, tmp_path / "adapter", "an adapter of PREFIX_TUNING changes no weights")


def test_what_a_source_needs_is_named(files, capsys, monkeypatch, tmp_path):
    save_adapter(ALGPT2LMHeadModel.from_pretrained(base(tmp_path / "base")), LoraConfig(r=3), tmp_path / "adapter")
    refused(capsys, monkeypatch, tmp_path, tmp_path / "base", "--base is the checkpoint of an adapter", "--base", "x")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("peft", "gguf") else find_spec(name))
    for source, message in (
        (tmp_path / "adapter", "peft is not installed; run pip install peft"),
        (files / "f16.gguf", "gguf is not installed; run pip install 'algpt2[export]'"),
    ):
        (tmp_path / "temporary").rmdir()
        refused(capsys, monkeypatch, tmp_path, source, message)


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_other_commands_say_what_makes_a_checkpoint(command, files, capsys, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    for source in (files / "f16.gguf", tmp_path):
        code, _, err = run(capsys, main_module, command, source)
        assert code == 2 and "`python -m convert to-pt`" in err and "Traceback" not in err
