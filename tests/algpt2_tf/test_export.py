"""Exports of the Keras model, run by TensorFlow alone and by the LiteRT interpreter, beside the PyTorch model."""

import numpy as np
import pytest
import tensorflow as tf
import torch
from ai_edge_litert.interpreter import Interpreter
from isolation import TORCH, run_without
from models import (
    batches_of_any_shape,
    both_models,
    both_pretraining_models,
    random_config,
    relative_difference,
    tiny_config,
)

from algpt2.checkpoints.weights import parameter_count
from algpt2_tf.export import export_litert, export_saved_model

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [3]]
LENGTH = 40
# Calls signatures with the arrays of one file and writes what they give to another.
PROCESS = """
import numpy as np
import tensorflow as tf
loaded = tf.saved_model.load({path!r})
outputs = {{}}
for call, (signature, ids, mask) in np.load({inputs!r}, allow_pickle=True)["calls"].item().items():
    found = loaded.signatures[signature](token_ids=ids, padding_mask=mask)
    outputs |= {{f"{{call}}/{{name}}": output.numpy() for name, output in found.items()}}
np.savez({outputs!r}, **outputs)
"""


def int32_batches(config):
    return [(ids.astype(np.int32), mask.astype(np.int32)) for ids, mask in batches_of_any_shape(config)]


def padded(prompts, length):
    """Prompts as token ids and their mask, int32 (batch, length)."""
    ids, mask = np.ones((len(prompts), length), np.int32), np.zeros((len(prompts), length), np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)], mask[row, : len(prompt)] = prompt, 1
    return ids, mask


def assert_same_logits(pytorch, found, ids, mask):
    with torch.no_grad():
        expected = pytorch(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.numpy()
    assert found.shape == expected.shape
    assert relative_difference(expected[mask == 1], np.asarray(found)[mask == 1]) < 1e-5


def continuation(pytorch, prompt, **options):
    """A prompt and what PyTorch continues it with, up to LENGTH tokens, as a list of int."""
    options = {"eos_token_id": None, "pad_token_id": 0, **options}
    return pytorch.generate(torch.tensor([prompt]), max_length=LENGTH, do_sample=False, **options)[0].tolist()


@pytest.fixture(scope="module")
def models():
    return both_models(tiny_config(), "float32")


@pytest.fixture(scope="module")
def stop(models):
    """A token that ends the continuation of the first prompt early."""
    return continuation(models[1], PROMPTS[0])[len(PROMPTS[0]) + 4]


@pytest.fixture(scope="module")
def saved_model(models, stop, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "1"
    models[0].compile(sampler="greedy")
    export_saved_model(models[0], path, stop_token_ids=(stop,))
    return path


@pytest.fixture(scope="module")
def outputs(models, saved_model, tmp_path_factory):
    """What the SavedModel gives in a process that has nothing of Keras or of this project."""
    directory = tmp_path_factory.mktemp("process")
    calls = {f"batch {i}": ("serving_default", *batch) for i, batch in enumerate(int32_batches(models[0].config))}
    calls["prompts"] = ("generate", *padded(PROMPTS, LENGTH))
    calls["short"] = ("generate", *padded(PROMPTS[1:2], 8))
    np.savez(directory / "inputs.npz", calls=calls)
    files = {"inputs": str(directory / "inputs.npz"), "outputs": str(directory / "outputs.npz")}
    code = PROCESS.format(path=str(saved_model), **files)
    result = run_without((*TORCH, "algpt2", "algpt2_tf", "keras", "keras_hub", "transformers"), code)
    assert result.returncode == 0, result.stderr
    return np.load(files["outputs"])


@pytest.mark.slow
def test_logits_of_a_saved_model(models, outputs):
    for number, batch in enumerate(int32_batches(models[0].config)):
        assert_same_logits(models[1], outputs[f"batch {number}/logits"], *batch)


@pytest.mark.slow
def test_generation_of_a_saved_model(models, stop, outputs):
    texts = [continuation(models[1], prompt, eos_token_id=stop) for prompt in PROMPTS]
    assert len(texts[0]) < LENGTH and len(set(texts[0])) > 3
    for name, expected in (("prompts", texts), ("short", [texts[1][:8]])):
        ids, mask = outputs[f"{name}/token_ids"], outputs[f"{name}/padding_mask"]
        assert [row[kept == 1].tolist() for row, kept in zip(ids, mask, strict=True)] == expected


def test_a_saved_model_stores_weights_once(models, saved_model):
    stored = sum(file.stat().st_size for file in (saved_model / "variables").iterdir())
    assert 1 <= stored / (4 * parameter_count(models[0].config)) < 1.2


def test_a_saved_model_refuses_sequences_that_are_too_long(saved_model):
    loaded = tf.saved_model.load(saved_model)
    ids = tf.ones((1, 81), tf.int32)
    for signature in loaded.signatures.values():
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"in \[0, 80\], but got 81"):
            signature(token_ids=ids, padding_mask=tf.ones_like(ids))


@pytest.mark.slow
def test_a_saved_model_of_a_model_for_pretraining_with_a_repetition_penalty(tmp_path):
    tensorflow, pytorch = both_pretraining_models(tiny_config(), "float32")
    tensorflow.compile(sampler="greedy", repetition_penalty=1.5)
    export_saved_model(tensorflow, tmp_path / "export")
    signatures = tf.saved_model.load(tmp_path / "export").signatures
    ids, mask = int32_batches(tensorflow.config)[-1]
    found = signatures["serving_default"](token_ids=tf.constant(ids), padding_mask=tf.constant(mask))
    assert list(found) == ["logits"]
    assert_same_logits(pytorch, found["logits"], ids, mask)
    ids, mask = padded(PROMPTS[:1], LENGTH)
    found = signatures["generate"](token_ids=tf.constant(ids), padding_mask=tf.constant(mask))
    expected = continuation(pytorch, PROMPTS[0], repetition_penalty=1.5)
    assert found["token_ids"][0].numpy().tolist() == expected != continuation(pytorch, PROMPTS[0])


def test_a_streamer_cannot_be_exported(tmp_path):
    model, _ = both_models(tiny_config(), "float32")
    model.compile(sampler="greedy", streamer=print)
    with pytest.raises(ValueError, match="compile the model without a streamer"):
        export_saved_model(model, tmp_path / "export")
    assert not (tmp_path / "export").exists()


@pytest.mark.slow
def test_logits_of_litert_at_any_shape(tmp_path):
    tensorflow, pytorch = both_models(random_config(5), "float32")
    export_litert(tensorflow, tmp_path / "model.tflite")
    runner = Interpreter(model_path=str(tmp_path / "model.tflite")).get_signature_runner("serving_default")
    for ids, mask in int32_batches(tensorflow.config):
        assert_same_logits(pytorch, runner(token_ids=ids, padding_mask=mask)["logits"], ids, mask)


@pytest.mark.slow
def test_litert_of_a_fixed_length_and_of_a_model_for_pretraining(tmp_path):
    tensorflow, pytorch = both_pretraining_models(tiny_config(), "float32")
    export_litert(tensorflow, tmp_path / "model.tflite", length=12)
    runner = Interpreter(model_path=str(tmp_path / "model.tflite")).get_signature_runner("serving_default")
    assert runner.get_input_details()["token_ids"]["shape_signature"].tolist() == [1, 12]
    assert list(runner.get_output_details()) == ["logits"]
    ids, mask = padded(PROMPTS[1:2], 12)
    assert_same_logits(pytorch, runner(token_ids=ids, padding_mask=mask)["logits"], ids, mask)


@pytest.fixture(scope="module")
def wide_models():
    """Models of one block whose matrices are large enough to be quantized."""
    return both_models(tiny_config(n_embd=96, embedding_size=32, vocab_size=512, layer_schedule=[0] * 4), "float32")


@pytest.mark.slow
@pytest.mark.parametrize(("quantize", "dtype"), [(None, np.float32), ("int8", np.int8)])
def test_litert_stores_a_shared_block_once_and_uses_built_in_operations(quantize, dtype, wide_models, tmp_path):
    tensorflow, pytorch = wide_models
    export_litert(tensorflow, tmp_path / "model.tflite", quantize)
    interpreter = Interpreter(model_path=str(tmp_path / "model.tflite"))
    shapes = [tuple(tensor["shape"]) for tensor in interpreter.get_tensor_details() if tensor["dtype"] == dtype]
    assert [shapes.count(shape) for shape in ((288, 96), (96, 96), (384, 96), (96, 384))] == [1, 1, 1, 1]
    operations = {operation["op_name"] for operation in interpreter._get_ops_details()}
    assert "FULLY_CONNECTED" in operations and not any(name.startswith(("Flex", "CUSTOM")) for name in operations)
    ids, mask = int32_batches(tensorflow.config)[-1]
    found = interpreter.get_signature_runner("serving_default")(token_ids=ids, padding_mask=mask)["logits"]
    if quantize is None:
        assert_same_logits(pytorch, found, ids, mask)
    else:
        expected = pytorch(torch.tensor(ids), attention_mask=torch.tensor(mask)).logits.detach().numpy()
        assert 1e-3 < relative_difference(expected[mask == 1], found[mask == 1]) < 0.1
        # One byte for each weight; the embedding stands twice, for the look-up and for the logits.
        assert sum(map(np.prod, shapes)) < 1.2 * parameter_count(tensorflow.config)


@pytest.mark.slow
@pytest.mark.parametrize(("quantize", "length"), [(None, None), (None, 4), ("int8", None)])
def test_a_litert_file_goes_on_from_its_cache(models, quantize, length, tmp_path):
    tensorflow, pytorch = models
    config, prompt = tensorflow.config, [5, 6, 7, 8]
    export_litert(tensorflow, tmp_path / "model.tflite", quantize, length)
    interpreter = Interpreter(model_path=str(tmp_path / "model.tflite"))
    prefill, decode = (interpreter.get_signature_runner(name) for name in ("prefill", "decode"))
    shape = (1, config.n_head, config.n_positions, config.n_embd // config.n_head)
    names = [f"kv_cache_{kind}_{depth}" for depth in range(config.n_layer) for kind in "kv"]
    cache = prefill(
        tokens=np.array([prompt], "int32"),
        input_pos=np.arange(4, dtype="int32"),
        **{name: np.zeros(shape, "float32") for name in names},
    )
    ids, logits = list(prompt), []
    while len(ids) < LENGTH:
        # The last token of the prompt once more, for its logits.
        place = len(ids) - 1
        cache = decode(tokens=np.array([ids[-1:]], "int32"), input_pos=np.array([place], "int32"), **cache)
        logits.append(cache.pop("logits")[0, 0])
        ids.append(int(logits[-1].argmax()))
    with torch.no_grad():
        expected = pytorch(torch.tensor([ids])).logits[0, 3:-1].numpy()
    if quantize:
        error = np.sqrt(np.mean((np.array(logits) - expected) ** 2) / np.mean(expected**2))
        assert error < 0.05
    else:
        assert relative_difference(expected, np.array(logits)) < 1e-5
        assert ids == continuation(pytorch, prompt)
