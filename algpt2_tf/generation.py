"""Continuations by TensorFlow: the function that gives new tokens, and its samplers."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from keras_hub.samplers import GreedySampler, RandomSampler, TopKSampler, TopPSampler

from algpt2.generation.command import run_generation
from algpt2_tf.evaluation import open_model


class TopKTopPSampler(TopPSampler):
    """Top-p among the k likeliest tokens, with their probabilities scaled to sum to 1, as in transformers.

    KerasHub's own sampler measures p in the probabilities of all tokens.

    Args:
        p: float.
        k: int.
        **kwargs: as in `keras_hub.samplers.TopPSampler`.
    """

    def get_next_token(self, probabilities):
        likeliest, _ = ops.top_k(probabilities, k=self.k, sorted=True)
        return super().get_next_token(probabilities / ops.sum(likeliest, axis=-1, keepdims=True))


def select_sampler(sampling):
    """The KerasHub sampler for an `algpt2.generation.continuation.Sampling`."""
    options = {"seed": sampling.seed, "temperature": sampling.temperature or 1.0}
    if sampling.top_p:
        if sampling.top_k:
            return TopKTopPSampler(p=sampling.top_p, k=sampling.top_k, **options)
        return TopPSampler(p=sampling.top_p, **options)
    if sampling.top_k:
        return TopKSampler(k=sampling.top_k, **options)
    return RandomSampler(**options) if sampling.temperature else GreedySampler()


def token_generator(model, sampling, stop_token_id, stream=False):
    """What `algpt2.generation.continuation.continue_tokens` takes, over `TFALGPT2LMHeadModel.generate_step`.

    Args:
        model: `TFALGPT2LMHeadModel`. It is compiled anew.
        sampling: `algpt2.generation.continuation.Sampling`.
        stop_token_id: int.
        stream: bool. Whether to emit tokens as they come; all come with the result as well.
    """
    keras.utils.set_random_seed(sampling.seed)
    emitters = []
    model.compile(
        sampler=select_sampler(sampling),
        repetition_penalty=sampling.repetition_penalty,
        streamer=(lambda tokens: emitters[-1](int(tokens[0]))) if stream else None,
    )
    shape = (1, None)

    # Traced once for all lengths, without XLA, which would compile once for each length. Without XLA a text is also the
    # same whether it is streamed or not.
    # Without AutoGraph, which would take seconds and has no Python control flow over tensors to convert.
    @tf.function(input_signature=[tf.TensorSpec(shape, tf.int32), tf.TensorSpec(shape, tf.bool)], autograph=False)
    def step(token_ids, padding_mask):
        return model.generate_step({"token_ids": token_ids, "padding_mask": padding_mask}, (stop_token_id,))

    def generate(context, count, emit):
        emitters[:] = [emit]
        ids = np.zeros((1, len(context) + count), dtype=np.int32)
        ids[0, : len(context)] = context
        outputs = step(ids, np.arange(ids.size)[None] < len(context))
        return outputs["token_ids"].numpy()[outputs["padding_mask"].numpy()][len(context) :].tolist()

    return generate


def open_generator(checkpoint, sampling, stop_token_id, stream, arguments):
    """`token_generator` with the model of a checkpoint."""
    return token_generator(open_model(checkpoint), sampling, stop_token_id, stream)


def run(arguments):
    """The program of generation: see `algpt2.generation.command.run_generation`."""
    run_generation(arguments, open_generator)
