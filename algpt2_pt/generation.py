"""Continuations by PyTorch: the function that gives new tokens."""

import copy

import torch
from transformers import GenerationConfig
from transformers.generation import BaseStreamer

from algpt2.configuration import at_depth_of
from algpt2.generation.command import run_generation
from algpt2.generation.drafting import draft_config
from algpt2.training.recorded_run import open_newest
from algpt2_pt.evaluation import open_on_device


class _Emitter(BaseStreamer):
    """Hands new tokens on, one by one; the first that `generate` puts is the prompt."""

    def __init__(self, emit):
        self.emit, self.is_prompt = emit, True

    def put(self, value):
        if not self.is_prompt:
            # Several, where they were drafted.
            for token in value.flatten().tolist():
                self.emit(token)
        self.is_prompt = False

    def end(self):
        pass


class _Draft:
    """A model at another depth, as transformers' assisted generation takes a second model.

    Its own early exit (`assistant_early_exit`) applies the first entries of the schedule, without the last blocks of
    patterns that end with blocks of their own.

    Args:
        model: `ALGPT2LMHeadModel`.
        config: `ALGPT2Config`, that of the model at the other depth.
    """

    def __init__(self, model, config):
        self._model, self._config = model, config

    def __getattr__(self, name):
        return getattr(self._model, name)

    def generate(self, *args, generation_config, **kwargs):
        # transformers gives some options beside the configuration, and would warn of that itself.
        generation_config = copy.deepcopy(generation_config)
        kwargs = generation_config.update(**kwargs)
        with at_depth_of(self._model.config, self._config):
            return self._model.generate(*args, generation_config=generation_config, **kwargs)


def token_generator(model, sampling, stop_token_id, draft=None):
    """The function that `algpt2.generation.continuation.continue_tokens` takes, over transformers' `generate`.

    Args:
        model: `ALGPT2LMHeadModel`. Its generation configuration is replaced by what the arguments say.
        sampling: `algpt2.generation.continuation.Sampling`.
        stop_token_id: int.
        draft: `ALGPT2Config`, that of the model at a smaller depth, which drafts tokens of greedy search.
    """
    torch.manual_seed(sampling.seed)
    options = {"repetition_penalty": sampling.repetition_penalty, "do_sample": not sampling.is_greedy}
    options |= {"num_beams": sampling.num_beams}
    if not sampling.is_greedy:
        options |= {"temperature": sampling.temperature or 1.0, "min_p": sampling.min_p}
        options |= {"top_k": sampling.top_k or 0, "top_p": sampling.top_p or 1.0}
    assistant = {"assistant_model": _Draft(model, draft)} if draft else {}
    # `generate` takes what is not given from the model's own, which may hold anything.
    model.generation_config = GenerationConfig()

    def generate(context, count, emit):
        ids = torch.tensor([context], device=model.device)
        configuration = GenerationConfig(
            max_new_tokens=count, eos_token_id=stop_token_id, pad_token_id=stop_token_id, **options
        )
        streamer = _Emitter(emit) if sampling.num_beams == 1 else None
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=configuration, streamer=streamer, **assistant
        )
        return output[0, len(context) :].tolist()

    return generate


def open_generator(checkpoint, sampling, stop_token_id, stream, arguments):
    """`token_generator` with the model of a checkpoint; it streams, unless it searches with beams."""
    draft = draft_config(checkpoint, arguments.draft_depth)
    return token_generator(open_on_device(checkpoint, arguments), sampling, stop_token_id, draft=draft)


def run(arguments):
    """The program of generation: see `algpt2.generation.command.run_generation`."""
    run_generation(arguments, open_generator, open_newest)
