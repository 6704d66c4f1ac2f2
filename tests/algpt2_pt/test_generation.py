"""Generation in PyTorch, against the plain model and the caches of transformers."""

import copy

import numpy as np
import pytest
import torch
from models import close, pytorch_model, random_weights, tiny_config
from torch.profiler import profile
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, StaticCache
from transformers.cache_utils import DynamicLayer

from algpt2_pt import cache
from algpt2_pt.cache import GrowingLayer
from algpt2_pt.cpu_kernels import is_bfloat16_fast, use_fast_kernels


@pytest.fixture(autouse=True)
def little_room(monkeypatch):
    # So that short texts outgrow it too.
    monkeypatch.setattr(cache, "ROOM", 4)


@pytest.mark.parametrize("make_cache", [lambda c: DynamicCache(config=c), lambda c: StaticCache(c, max_cache_len=20)])
def test_caches_hold_one_entry_per_depth(model, batch, make_cache):
    ids = batch["input_ids"]
    expected = model(ids).logits
    cache = make_cache(model.config)
    parts = [
        model(ids[:, start:end], past_key_values=cache, use_cache=True).logits
        for start, end in ((0, 5), (5, 6), (6, 12))
    ]
    assert close(torch.cat(parts, dim=1), expected)
    assert len(cache.layers) == model.config.n_layer
    assert cache.get_seq_length() == 12
    assert not torch.equal(cache.layers[0].keys, cache.layers[2].keys)


@pytest.mark.parametrize(
    "options",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"num_beams": 3},
        {"do_sample": True, "top_k": 5, "temperature": 0.7},
        {"do_sample": True, "top_p": 0.8, "repetition_penalty": 1.3},
        {"num_beams": 4, "num_return_sequences": 3},
        {"prompt_lookup_num_tokens": 2},
        {"assistant_early_exit": 1},
    ],
)
def test_generation(model, options):
    prompt = torch.tensor([[3, 5, 8, 3, 5]])
    if options.get("num_beams") != 4 and "do_sample" not in options and options.get("num_beams") is None:
        expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=15, do_sample=False)
        found = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=15, do_sample=False, **options
        )
        assert torch.equal(found, expected)
        return
    outputs = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        outputs.append(
            model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=15, use_cache=use_cache, pad_token_id=0,
                **options,
            )
        )  # fmt: skip
    assert torch.equal(*outputs)
    assert len(outputs[0]) == options.get("num_return_sequences", 1)


@pytest.mark.slow
def test_continuous_batching_gives_what_generate_gives():
    config = tiny_config(layer_schedule=[0, 1, 0])
    model = pytorch_model(config, random_weights(config, "float32"))
    prompts = [[7, 2, 9, 4, 1, 6], [5, 8, 3]]
    options = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=96, pad_token_id=96)
    expected = [model.generate(torch.tensor([p]), generation_config=options)[0, len(p) :].tolist() for p in prompts]
    model.set_attn_implementation("sdpa")
    outputs = model.generate_batch(prompts, generation_config=options, progress_bar=False)
    found = [output.generated_tokens for output in outputs.values()]
    assert sorted(found) == sorted(expected)


def test_left_padding_gives_the_unpadded_result(model):
    prompts = [[7, 2, 9, 4, 1, 6], [5, 8]]
    padded = torch.tensor([prompts[0], [0] * 4 + prompts[1]])
    mask = torch.tensor([[1] * 6, [0] * 4 + [1] * 2])
    together = model.generate(padded, attention_mask=mask, max_new_tokens=10, do_sample=False, eos_token_id=None)
    for row, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        alone = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=10, do_sample=False, eos_token_id=None
        )
        assert torch.equal(together[row, 6:], alone[0, len(prompt) :])
    positions = torch.tensor([[0] * 4 + [0, 1]])
    found = model(padded[1:], attention_mask=mask[1:], position_ids=positions).logits[:, 4:]
    assert close(found, model(torch.tensor([prompts[1]])).logits)


def test_generation_does_not_copy_what_it_has_cached(model):
    prompt = torch.tensor([[3, 5, 8, 3, 5]])
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 30, "do_sample": False}
    options |= {"return_dict_in_generate": True, "pad_token_id": 0, "eos_token_id": None}
    held = []

    class Holder(LogitsProcessor):
        """Keeps the keys, so that what is freed is not used again."""

        def __call__(self, ids, scores):
            held.extend(layer.keys for layer in cache.layers)
            return scores

    expected = model.generate(prompt, past_key_values=DynamicCache(config=model.config), **options)
    found = model.generate(prompt, **options)
    assert torch.equal(found.sequences, expected.sequences)
    for layer, same in zip(found.past_key_values.layers, expected.past_key_values.layers, strict=True):
        assert isinstance(layer, GrowingLayer) and close(layer.keys, same.keys) and close(layer.values, same.values)
    cache = found.past_key_values
    ids = found.sequences
    model.generate(ids, past_key_values=cache, logits_processor=[Holder()], **{**options, "max_new_tokens": 5,
                   "attention_mask": torch.ones_like(ids)})  # fmt: skip
    # Five tokens outgrow a room of four once.
    assert len(held) == 5 * model.config.n_layer
    assert len({keys.data_ptr() for keys in held}) <= 2 * model.config.n_layer


OPERATIONS = {
    "update": lambda layer, new: layer.update(*new),
    "update in another dtype": lambda layer, new: layer.update(*new.double()),
    "crop": lambda layer, new: layer.crop(-1),
    "crop all": lambda layer, new: layer.crop(-layer.get_seq_length()),
    "reorder": lambda layer, new: layer.reorder_cache(torch.arange(len(layer.keys)).flip(0)),
    "repeat": lambda layer, new: layer.batch_repeat_interleave(2),
    "select": lambda layer, new: layer.batch_select_indices(slice(0, 1)),
    "reset": lambda layer, new: layer.reset(),
}


@pytest.mark.parametrize("seed", range(20))
def test_a_growing_cache_holds_what_a_dynamic_one_holds(seed):
    random = np.random.default_rng(seed)
    growing, dynamic = GrowingLayer(), DynamicLayer()

    def states(step):
        rows = len(dynamic.keys) if dynamic.is_initialized and dynamic.keys.ndim == 4 else 2
        return torch.randn(2, rows, 3, 1 + step % 3, 4, generator=torch.Generator().manual_seed(1000 * seed + step))

    for step in range(60):
        name = random.choice(["update"] * 12 + list(OPERATIONS)) if dynamic.get_seq_length() else "update"
        new = states(step)
        with [torch.no_grad, torch.inference_mode, torch.enable_grad][random.integers(3)]():
            for layer in (growing, dynamic):
                OPERATIONS[name](layer, new)
            if random.random() < 0.1:
                # What becomes of a cache does not reach its copy.
                original, growing = growing, copy.deepcopy(growing)
                original.update(*states(step))
        assert growing.get_seq_length() == dynamic.get_seq_length()
        if dynamic.get_seq_length():
            assert growing.keys.dtype == dynamic.keys.dtype
            assert torch.equal(growing.keys, dynamic.keys) and torch.equal(growing.values, dynamic.values)


@pytest.mark.slow
def test_a_compiled_model_takes_the_cache_of_generation(model):
    prompt = torch.tensor([[3, 5, 8, 3, 5]])
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(prompt, **options)
    torch.compiler.reset()
    model.forward = torch.compile(model.forward, fullgraph=True, backend="eager")
    assert torch.equal(model.generate(prompt, **options), expected)


def test_generation_with_gradients(model):
    prompt = torch.tensor([[3, 5, 8, 3, 5]])
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    assert not model.generate(prompt, **options).logits[-1].requires_grad
    type(model).generate.__wrapped__(model, prompt, **options).logits[-1].sum().backward()
    assert model.transformer.wpe.weight.grad[0].abs().sum() > 0


def test_gradients_pass_through_a_growing_cache():
    def gradient(layer):
        states = torch.randn(2, 1, 3, 5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        total = 0
        for position in range(5):
            keys, values = layer.update(*states[..., position : position + 1, :])
            total = total + (keys**2 * values).sum()
        total.backward()
        return states.grad

    assert torch.equal(gradient(GrowingLayer()), gradient(DynamicLayer()))


def test_generation_packs_the_weights_of_bfloat16(model):
    use_fast_kernels(model.bfloat16())
    prompt = torch.tensor([[3, 5, 8, 3, 5]])
    options = {"attention_mask": torch.ones_like(prompt), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with profile() as profiler:
        outputs = model.generate(prompt, output_logits=True, return_dict_in_generate=True, **options)
    operations = {event.key for event in profiler.key_averages()}
    assert ("mkldnn::_linear_pointwise" in operations) == is_bfloat16_fast()
    with torch.no_grad():
        expected = model.double()(outputs.sequences).logits[:, prompt.shape[1] - 1 : -1]
    assert close(torch.stack(outputs.logits, dim=1).double(), expected, 0.05)


def test_end_tokens_are_integers_of_any_kind():
    config = tiny_config()
    model = use_fast_kernels(pytorch_model(config, random_weights(config, "float32")))
    ids = torch.arange(1, 6)[None]
    whole = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)[0].tolist()
    for end in (np.int64(whole[9]), np.array(whole[9]), np.array([whole[9], whole[11]]), [np.int32(whole[9])]):
        found = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=end, pad_token_id=np.int64(0))[0]
        first = next(place for place in range(5, 17) if whole[place] in np.ravel(end))
        assert found.tolist() == whole[: first + 1]
