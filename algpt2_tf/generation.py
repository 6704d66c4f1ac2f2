"""Continuations by TensorFlow: the function that gives new tokens, and its samplers."""

import contextlib

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from keras_hub.samplers import BeamSampler, GreedySampler, RandomSampler, TopKSampler, TopPSampler

from algpt2.errors import InputError
from algpt2.generation.command import run_generation
from algpt2.generation.drafting import draft_config
from algpt2.training.recorded_run import open_newest
from algpt2_tf.devices import select_device
from algpt2_tf.drafting import drafting_generator
from algpt2_tf.evaluation import open_model


class FilteringSampler(RandomSampler):
    """Draws among the tokens that transformers keeps by top-k, top-p and min-p, one after the other.

    KerasHub's top-k and top-p samplers do not go together as in transformers, where p is of the k likeliest tokens, and
    it has none for min-p.

    Args:
        k: int. The tokens to keep; `None` keeps all.
        p: float. Only the likeliest tokens that have this probability together are kept; `None` keeps all.
        min_p: float. Only tokens of at least this share of the likeliest one's probability are kept; `None` keeps all.
        **kwargs: as in `keras_hub.samplers.RandomSampler`.
    """

    def __init__(self, k=None, p=None, min_p=None, **kwargs):
        super().__init__(**kwargs)
        self.k, self.p, self.min_p = k, p, min_p

    def get_next_token(self, probabilities):
        kept, tokens = ops.top_k(probabilities, k=self.k or probabilities.shape[-1], sorted=True)
        kept = kept / ops.sum(kept, axis=-1, keepdims=True)
        if self.p:
            likelier = ops.cumsum(kept, axis=-1) - kept
            kept = ops.where(likelier < self.p, kept, 0.0)
        if self.min_p:
            kept = ops.where(kept >= self.min_p * kept[:, :1], kept, 0.0)
        places = keras.random.categorical(ops.log(kept), 1, seed=self.seed_generator, dtype="int32")
        return ops.squeeze(ops.take_along_axis(tokens, places, axis=-1), axis=-1)


def select_sampler(sampling):
    """The KerasHub sampler for an `algpt2.generation.continuation.Sampling`.

    Raises:
        algpt2.errors.InputError: for beam search with a repetition penalty.
    """
    if sampling.num_beams > 1:
        if sampling.repetition_penalty != 1:
            # transformers applies it to the sums that beams are compared by.
            raise InputError("--repetition-penalty: KerasHub's beam search has none; leave it or --num-beams out")
        return BeamSampler(num_beams=sampling.num_beams)
    options = {"seed": sampling.seed, "temperature": sampling.temperature or 1.0}
    if sampling.min_p or (sampling.top_k and sampling.top_p):
        return FilteringSampler(sampling.top_k, sampling.top_p, sampling.min_p, **options)
    if sampling.top_p:
        return TopPSampler(p=sampling.top_p, **options)
    if sampling.top_k:
        return TopKSampler(k=sampling.top_k, **options)
    return RandomSampler(**options) if sampling.temperature else GreedySampler()


def token_generator(model, sampling, stop_token_id, stream=True):
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

    # Traced once for all lengths, but with beams, whose loop has to know the length. Without XLA, which would compile
    # once for each length; so a text is also the same whether it is streamed or not.
    # Without AutoGraph, which would take seconds and has no Python control flow over tensors to convert.
    signature = [tf.TensorSpec(shape, tf.int32), tf.TensorSpec(shape, tf.bool)] if sampling.num_beams == 1 else None

    @tf.function(input_signature=signature, autograph=False)
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
    """`token_generator`, or with `--draft-depth` `drafting_generator`, with the model of a checkpoint."""
    draft = draft_config(checkpoint, arguments.draft_depth)
    model = open_model(checkpoint)
    if draft:
        return drafting_generator(model, draft, stop_token_id)
    return token_generator(model, sampling, stop_token_id, stream)


def run(arguments):
    """The program of generation: see `algpt2.generation.command.run_generation`."""
    with contextlib.nullcontext() if select_device(arguments.device) else _graphs_as_traced():
        run_generation(arguments, open_generator, open_newest)


@contextlib.contextmanager
def _graphs_as_traced():
    """A context in which TensorFlow does not optimize graphs: it takes a second, and on a CPU no token is faster."""
    option = "disable_meta_optimizer"
    former = tf.config.optimizer.get_experimental_options().get(option, False)
    tf.config.optimizer.set_experimental_options({option: True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({option: former})
