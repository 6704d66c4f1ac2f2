"""Continuations by ONNX Runtime: the function that gives new tokens."""

import numpy as np

from algpt2.generation.sampling import choose


def token_generator(model, sampling, stop_token_id):
    """The function that `algpt2.generation.continuation.continue_tokens` takes; it streams.

    Args:
        model: `algpt2.onnx.session.OnnxLanguageModel`.
        sampling: `algpt2.generation.continuation.Sampling`.
        stop_token_id: int.
    """
    generator = np.random.default_rng(sampling.seed)

    def generate(context, count, emit):
        decoding, new = model.start([context], len(context) + count), []
        while len(new) < count:
            if new:
                decoding.advance(new[-1:])
            new.append(choose(decoding.logits[0], [*context, *new], sampling, generator))
            emit(new[-1])
            if new[-1] == stop_token_id:
                break
        return new

    return generate
