"""How both frameworks choose tokens: greedily, past the context, by drafting, and by sampling."""

import numpy as np
import pytest
import torch
from command_lines import FRAMEWORKS
from keras_hub.samplers import GreedySampler
from models import both_models, pytorch_model, random_config, random_weights, tiny_config
from transformers.generation import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from algpt2.generation.continuation import Sampling, continue_tokens
from algpt2_pt.generation import token_generator as pt_token_generator
from algpt2_tf import drafting
from algpt2_tf.drafting import drafting_generator
from algpt2_tf.generation import select_sampler
from algpt2_tf.generation import token_generator as tf_token_generator
from algpt2_tf.weights import assign_weights


def open_both(config, sampling, stop=None, stream=False):
    """The generators of both frameworks over the same random weights."""
    tensorflow, pytorch = both_models(config, "float32")
    # No token has this id.
    stop = config.vocab_size if stop is None else stop
    return (
        pt_token_generator(pytorch, sampling, stop),
        tf_token_generator(tensorflow, sampling, stop, stream),
        pytorch,
    )


@torch.no_grad()
def plain_greedy_search(model, ids, count, n_positions, penalty):
    """Greedy search without a cache, with the penalty as in the paper on CTRL."""
    context, new = list(ids), []
    for _ in range(count):
        if len(context) >= n_positions:
            context = context[-n_positions // 2 :]
        logits = model(torch.tensor([context])).logits[0, -1].numpy().copy()
        for token in set(context):
            logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
        new.append(int(logits.argmax()))
        context.append(new[-1])
    return new


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_search_past_the_context_in_both_frameworks(penalty):
    different = []
    for seed in range(5):
        config = type(random_config(seed)).from_dict(random_config(seed).to_dict(), n_positions=24)
        prompt = np.random.default_rng(seed).integers(config.vocab_size, size=5 + 10 * seed).tolist()
        *generators, model = open_both(config, Sampling(repetition_penalty=penalty))
        expected = plain_greedy_search(model, prompt, 50, 24, penalty)
        for generate in generators:
            found = continue_tokens(generate, prompt, 50, 24, config.vocab_size, lambda token: None)
            assert found == expected
        different.append(len(set(expected)))
    # Constant continuations would prove little.
    assert max(different) > 5


@pytest.mark.slow
def test_greedy_search_by_drafting_in_both_frameworks():
    config = tiny_config(n_positions=24, layer_schedule=[0, 1, 2, 1, 2, 1, 2, 3], initializer_range=0.1)
    draft = tiny_config(n_positions=24, layer_schedule=[0, 1, 2, 1, 2, 3])
    tensorflow, pytorch = both_models(config, "float32")
    # Short, over the edge of the context, and longer than it.
    prompts = [np.random.default_rng(length).integers(97, size=length).tolist() for length in (1, 9, 30)]
    expected = [plain_greedy_search(pytorch, prompt, 40, 24, 1.0) for prompt in prompts]
    stop = expected[1][20]
    for name, generate in {
        "pt": pt_token_generator(pytorch, Sampling(), stop, draft=draft),
        "tf": drafting_generator(tensorflow, draft, stop),
    }.items():
        for prompt, ids in zip(prompts, expected, strict=True):
            emitted = []
            found = continue_tokens(generate, prompt, 40, 24, stop, emitted.append)
            end = ids.index(stop) + 1 if stop in ids else len(ids)
            assert found == ids[:end], name
            assert emitted == [token for token in found if token != stop]
    assert tensorflow.config.n_layer == pytorch.config.n_layer == 8


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_draft_saves_steps_at_full_depth(framework, monkeypatch):
    # At depth 2 the model gives what it gives at depth 3: its blocks do nothing.
    config = tiny_config(n_positions=40, layer_schedule=[0, 0, 0])
    weights = {
        name: array * (not name.endswith(("c_proj.weight", "c_proj.bias")))
        for name, array in random_weights(config, "float32").items()
    }
    draft, depths = tiny_config(n_positions=40, layer_schedule=[0, 0]), []
    if framework == "pt":
        model = pytorch_model(config, weights)
        forward = model.transformer.forward
        monkeypatch.setattr(
            model.transformer, "forward", lambda *a, **k: depths.append(model.config.n_layer) or forward(*a, **k)
        )
        generate = pt_token_generator(model, Sampling(), 97, draft=draft)
    else:
        model = both_models(config, "float32")[0]
        assign_weights(model, weights)
        likeliest = drafting._Depth.likeliest
        monkeypatch.setattr(
            drafting._Depth, "likeliest", lambda self, *a: depths.append(self.n_layer) or likeliest(self, *a)
        )
        generate = drafting_generator(model, draft, 97)
    assert len(generate([1, 2, 3], 20, lambda token: None)) == 20
    # A look at full depth brings five tokens; in transformers two, where the draft is not sure of the first.
    assert depths.count(3) == (10 if framework == "pt" else 4)


class RecordingSampler(GreedySampler):
    """Greedy search that keeps the logits it sees."""

    def compute_probabilities(self, logits):
        self.seen = [*getattr(self, "seen", []), np.asarray(logits)]
        return super().compute_probabilities(logits)


def test_penalized_logits_of_a_padded_batch_are_those_of_transformers():
    config = tiny_config()
    tensorflow, pytorch = both_models(config, "float32")
    sampler = RecordingSampler()
    tensorflow.compile(sampler=sampler, repetition_penalty=1.3)
    lengths = np.array([4, 9, 15])
    mask = np.arange(20) < lengths[:, None]
    ids = np.random.default_rng(0).integers(1, config.vocab_size, size=(3, 20)) * mask
    outputs = np.asarray(
        tensorflow.generate_step({"token_ids": ids.astype("int32"), "padding_mask": mask})["token_ids"]
    )
    assert len(sampler.seen) == 20 - 4
    penalize = RepetitionPenaltyLogitsProcessor(1.3)
    for index, logits in enumerate(sampler.seen, start=4):
        for row in np.flatnonzero(lengths <= index):
            before = torch.tensor(outputs[row : row + 1, :index]).long()
            expected = penalize(before, pytorch(before).logits[:, -1].detach())
            np.testing.assert_allclose(logits[row], expected[0].numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_generation_stops_at_the_stop_token_and_streams_before_it_ends():
    config = tiny_config(n_positions=20)
    free = open_both(config, Sampling())[0]([1, 2, 3], 12, lambda token: None)
    stop = free[6]
    assert stop not in free[:6]
    for generate in open_both(config, Sampling(), stop=stop, stream=True)[:2]:
        emitted = []
        assert generate([1, 2, 3], 12, emitted.append) == free[:7]
        assert emitted in (free[:6], free[:7])


def test_top_k_and_top_p_draw_from_the_tokens_that_transformers_keeps():
    draw = np.random.default_rng(0)
    logits = torch.tensor(draw.normal(0, 1.5, size=(1, 50)), dtype=torch.float32)
    for options in (
        {"top_k": 6},
        {"top_p": 0.6},
        {"top_k": 12, "top_p": 0.6},
        {"temperature": 0.5, "top_p": 0.8},
        {"min_p": 0.2},
        {"top_k": 12, "top_p": 0.9, "min_p": 0.15},
    ):
        warpers = LogitsProcessorList([TemperatureLogitsWarper(options.get("temperature", 1.0))])
        if "top_k" in options:
            warpers.append(TopKLogitsWarper(options["top_k"]))
        if "top_p" in options:
            warpers.append(TopPLogitsWarper(options["top_p"]))
        if "min_p" in options:
            warpers.append(MinPLogitsWarper(options["min_p"]))
        expected = torch.softmax(warpers(None, logits), dim=-1)[0].numpy()
        sampler = select_sampler(Sampling(**options, seed=1))
        probabilities = sampler.compute_probabilities(np.repeat(logits.numpy(), 20_000, axis=0))
        counts = np.bincount(np.asarray(sampler.get_next_token(probabilities)), minlength=50) / 20_000
        assert set(np.flatnonzero(counts)) == set(np.flatnonzero(expected))
        assert np.abs(counts - expected).max() < 0.02
