"""Greedy search by drafting in TensorFlow: tokens of a smaller depth, looked at together at full depth."""

import numpy as np
import tensorflow as tf

from algpt2.configuration import at_depth_of
from algpt2.generation.drafting import accepted

# How many tokens are drafted before the model looks at them.
DRAFTED = 4
# Caches have room for a multiple of as many tokens, since TensorFlow compiles their update for every shape.
ROOM = 64


def drafting_generator(model, draft, stop_token_id):
    """What `algpt2.generation.continuation.continue_tokens` takes: greedy search that drafts.

    The keys and values of both depths are kept apart: from the second block on they are of other states.

    Args:
        model: `TFALGPT2LMHeadModel`.
        draft: `ALGPT2Config`, that of the model at a smaller depth.
        stop_token_id: int.

    References:
        Speculative decoding: Leviathan et al., 2023 (https://arxiv.org/abs/2211.17192), here of greedy search.
    """
    drafting, verifying = _Depth(model, draft), _Depth(model, model.config)

    def generate(context, count, emit):
        ids, new = list(context), []
        for depth in (drafting, verifying):
            depth.begin(len(context) + count)
        while len(new) < count and new[-1:] != [stop_token_id]:
            # The model adds one token to those that it accepts.
            drafted = drafting.continued(ids, min(DRAFTED, count - len(new) - 1))
            found = accepted(drafted, verifying.likeliest(ids + drafted, len(drafted) + 1))
            if stop_token_id in found:
                found = found[: found.index(stop_token_id) + 1]
            for token in found:
                emit(token)
            new += found
            ids += found
            # Keys and values of tokens that were not accepted are computed again, in the same place.
            for depth in (drafting, verifying):
                depth.known = min(depth.known, len(ids) - 1)
        return new

    return generate


class _Depth:
    """A model at one depth, with the keys and values of the tokens that it has seen.

    Args:
        model: `TFALGPT2LMHeadModel`.
        config: `ALGPT2Config`, that of the model at this depth.
    """

    def __init__(self, model, config):
        self.n_layer, self.dtype = config.n_layer, model.compute_dtype
        self.shape = (1, config.n_head, None, config.n_embd // config.n_head)
        entry = tf.TensorSpec(self.shape, self.dtype)
        tokens, number = tf.TensorSpec((1, None), tf.int32), tf.TensorSpec((), tf.int32)
        backbone = model.backbone

        # Without AutoGraph, which would take seconds and has no Python control flow over tensors to convert.
        @tf.function(input_signature=[tokens, ((entry, entry),) * self.n_layer, number, number], autograph=False)
        def step(token_ids, cache, start, kept):
            with at_depth_of(backbone.config, config):
                states, cache = backbone.call_with_cache(token_ids, cache, start)
            logits = backbone.token_embedding(states[:, -kept:], reverse=True)
            return tf.argmax(logits, axis=-1, output_type=tf.int32), cache

        self._step = step

    def begin(self, length):
        """Forget all tokens, and make room for as many (int)."""
        room = -(-length // ROOM) * ROOM
        empty = tf.zeros([room if size is None else size for size in self.shape], self.dtype)
        self.cache, self.known = ((empty, empty),) * self.n_layer, 0

    def likeliest(self, ids, kept):
        """The likeliest tokens after the last `kept` of some, list of int; only what is not known yet is computed."""
        new = np.array([ids[self.known :]], dtype=np.int32)
        tokens, self.cache = self._step(new, self.cache, self.known, kept)
        self.known = len(ids)
        return tokens[0].numpy().tolist()

    def continued(self, ids, count):
        """The `count` tokens that greedy search at this depth goes on with, list of int."""
        drafted = []
        for _ in range(count):
            drafted += self.likeliest(ids + drafted, 1)
        return drafted
