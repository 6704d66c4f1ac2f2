"""The ONNX graph beside the PyTorch model, with and without its cache, and what its quantization costs."""

import numpy as np
import pytest
import torch
from models import CONFIGS, pytorch_model, random_config, random_weights, tiny_config

from algpt2.configuration import ACTIVATIONS
from algpt2.errors import InputError
from algpt2.onnx.graph import ACTIVATIONS as OPERATORS
from algpt2.onnx.graph import language_model
from algpt2.onnx.quantization import BLOCK_SIZES, balance, quantize_blocks
from algpt2.onnx.session import OnnxLanguageModel

ROWS = np.random.default_rng(0).integers(0, 97, (3, 12))


def both(config, precision="float32", seed=0):
    """The same model in ONNX Runtime and in PyTorch."""
    weights = random_weights(config, "float32", seed)
    graph = language_model(config, weights, precision).SerializeToString()
    return OnnxLanguageModel(graph), pytorch_model(config, weights).eval()


def torch_logits(model, ids, mask=None):
    mask = torch.ones_like(torch.tensor(ids)) if mask is None else torch.tensor(mask)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        return model(torch.tensor(ids), attention_mask=mask, position_ids=positions).logits.numpy()


def close(found, expected, tolerance=1e-5):
    return np.abs(found - expected).max() <= tolerance * np.abs(expected).max()


def has_attention(config):
    return config.n_embd // config.n_head % 8 == 0


@pytest.mark.parametrize("config", [*CONFIGS.values(), *filter(has_attention, map(random_config, range(20)))])
def test_logits_are_those_of_pytorch(config):
    onnx, model = both(config)
    assert close(onnx.run(ROWS), torch_logits(model, ROWS))


def test_a_head_of_another_width_is_refused():
    config = tiny_config(n_head=6)
    with pytest.raises(InputError, match="n_embd / n_head = 4"):
        language_model(config, random_weights(config))


def test_every_activation_has_an_operator():
    assert OPERATORS.keys() == set(ACTIVATIONS)
    for activation in ACTIVATIONS:
        onnx, model = both(tiny_config(activation_function=activation))
        assert close(onnx.run(ROWS), torch_logits(model, ROWS)), activation


@pytest.mark.parametrize("padding", [0, 5])
def test_the_cache_goes_on_as_pytorch_from_the_beginning(padding):
    onnx, model = both(CONFIGS["cycle"])
    mask = np.ones_like(ROWS)
    mask[0, :padding] = 0
    decoding = onnx.start(ROWS[:, :8], capacity=12, mask=mask[:, :8])
    expected = torch_logits(model, ROWS, mask)
    assert close(decoding.logits, expected[:, 7])
    for position in range(8, 12):
        assert close(decoding.advance(ROWS[:, position]), expected[:, position])
    with pytest.raises(ValueError, match="capacity"):
        decoding.advance(ROWS[:, 0])


@pytest.mark.parametrize("unpack", [False, True])
@pytest.mark.parametrize("precision", ["float32", "q4"])
def test_only_the_logits_that_are_asked_for_are_computed(precision, unpack):
    weights = random_weights(CONFIGS["cycle"], "float32")
    graph = language_model(CONFIGS["cycle"], weights, precision, unpack).SerializeToString()
    whole = OnnxLanguageModel(graph).outputs(ROWS)
    last = OnnxLanguageModel(graph).outputs(ROWS, last=True)
    assert whole["logits"].shape == (3, 12, 97) and last["logits"].shape == (3, 1, 97)
    assert close(last["logits"], whole["logits"][:, -1:])
    assert np.array_equal(last["present.0.key"], whole["present.0.key"])


def test_greedy_ids_of_a_hundred_tokens_are_those_of_generate():
    onnx, model = both(tiny_config(n_positions=120))
    prompt = ROWS[:1, :5]
    expected = model.generate(torch.tensor(prompt), max_new_tokens=100, do_sample=False, eos_token_id=None)
    decoding = onnx.start(prompt, capacity=105)
    found = [decoding.logits.argmax(-1)]
    while len(found) < 100:
        found.append(decoding.advance(found[-1]).argmax(-1))
    assert np.array_equal(np.ravel(found), expected[0, 5:])


def test_a_shared_block_is_stored_once():
    shared, unshared = (
        language_model(config, random_weights(config))
        for config in (tiny_config(layer_schedule=[0] * 6), tiny_config(layer_schedule=[0]))
    )
    count = [sum(np.prod(tensor.dims) for tensor in graph.graph.initializer) for graph in (shared, unshared)]
    assert count[0] == count[1]


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [256, 10])
def test_quantized_blocks_are_as_near_as_their_levels_allow(bits, columns):
    matrix = np.random.default_rng(bits).normal(size=(6, columns)).astype("float32")
    _, scales = quantize_blocks(matrix, bits)
    steps = (rounded("matrix", matrix, bits) - matrix) / scales.repeat(BLOCK_SIZES[bits], axis=1)[:, :columns]
    # Half a step at most, but for the numbers that a smaller scale cuts off.
    assert np.mean(np.abs(steps) <= 0.51) > 0.9 and np.sqrt(np.mean(steps**2)) < 0.4


@pytest.mark.parametrize("config", [*CONFIGS.values(), *map(random_config, range(10))])
def test_a_balanced_model_computes_the_same(config):
    weights = random_weights(config, "float64")
    expected = torch_logits(pytorch_model(config, weights).eval(), ROWS)
    found = torch_logits(pytorch_model(config, balance(config, weights)).eval(), ROWS)
    assert np.abs(found - expected).max() < 1e-10


def test_one_large_channel_does_not_spoil_products_in_eight_bits():
    config = tiny_config(layer_schedule=[0, 1, 0], n_embd=64, n_head=2, embedding_size=None)
    weights = random_weights(config, "float32")
    for name, weight in weights.items():
        if name.endswith(("ln_1.weight", "ln_2.weight")):
            weight[5] = 100
        if name.endswith(("c_attn.weight", "c_fc.weight")):
            weight[:, 5] /= 100
    expected, found = (
        OnnxLanguageModel(language_model(config, weights, precision).SerializeToString()).run(ROWS)
        for precision in ("float32", "int8")
    )
    # Unbalanced it is 0.26.
    assert np.std(found - expected) < 0.1 * np.std(expected)


@pytest.mark.parametrize(("precision", "tolerance"), [("int8", 0.15), ("q4", 0.3)])
@pytest.mark.parametrize("rank", [3, 64])
# Too large for float16, and too small.
@pytest.mark.parametrize("size", [1e7, 1e-7])
def test_the_two_factors_of_an_addition_may_share_their_size_in_any_way(size, rank, precision, tolerance):
    config = tiny_config(layer_schedule=[0, 0], n_embd=64, n_head=2, embedding_size=None, depth_lora_rank=rank)
    weights = random_weights(config, "float32")
    for name, weight in weights.items():
        if name.endswith((".down", ".up")):
            weight *= 1 / size if name.endswith(".down") else size
    expected, found = (
        OnnxLanguageModel(language_model(config, weights, each).SerializeToString()).run(ROWS)
        for each in ("float32", precision)
    )
    assert np.std(found - expected) < tolerance * np.std(expected)


def rounded(name, matrix, bits):
    """A matrix as its quantized blocks give it, another tensor as it is."""
    if matrix.ndim == 1 or "wpe" in name:
        return matrix
    if name.endswith((".down", ".up")):
        # What a depth adds is in 8 bits in both, or as float16 where rows fill less than half a block.
        if matrix.shape[1] < 64:
            scale = np.abs(matrix).max()
            return (matrix / scale).astype("float16").astype("float32") * scale
        bits = 8
    packed, scales = quantize_blocks(matrix, bits)
    levels = packed if bits == 8 else np.stack((packed & 15, packed >> 4), axis=-1).reshape(*packed.shape[:2], -1)
    values = (levels.astype("float32") - (1 << (bits - 1))) * scales[..., None]
    return values.reshape(len(matrix), -1)[:, : matrix.shape[1]]


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("q4", 4)])
@pytest.mark.parametrize("name", ["cycle", "unfactorized"])
# The products of rounded weights round their other factor to 8 bits as well; those of unpacked ones do not.
@pytest.mark.parametrize(("unpack", "tolerance"), [(False, 0.03), (True, 1e-5)])
def test_quantized_logits_are_those_of_pytorch_with_rounded_weights(precision, bits, name, unpack, tolerance):
    config = CONFIGS[name]
    weights = random_weights(config, "float32")
    graph = language_model(config, weights, precision, unpack).SerializeToString()
    onnx = OnnxLanguageModel(graph)
    stored = balance(config, weights) if bits == 8 else weights
    model = pytorch_model(config, {name: rounded(name, weight, bits) for name, weight in stored.items()}).eval()
    expected = torch_logits(model, ROWS)
    decoding = onnx.start(ROWS[:, :11], capacity=12)
    for found, wanted in ((onnx.run(ROWS), expected), (decoding.advance(ROWS[:, 11]), expected[:, 11])):
        assert np.sqrt(np.mean((found - wanted) ** 2) / np.mean(wanted**2)) < tolerance


@pytest.mark.slow
def test_what_is_no_model_with_a_cache_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(InputError, match="onnxruntime cannot load it"):
        OnnxLanguageModel(path)
