"""Continue a text in TensorFlow: `python -m algpt2_tf.generate DIR PROMPT`."""

import keras
from keras_hub.samplers import GreedySampler, Sampler

from algpt2.commands import generate_parser, prompt_budget
from algpt2.errors import InputError, exit_on_input_error
from algpt2_tf.causal_lm import TFALGPT2LMHeadModel


class _FilteredSampler(Sampler):
    """Samples from the `top_k` likeliest tokens, and of those from the likeliest whose mass reaches `top_p`.

    KerasHub's own samplers apply either limit, not both; transformers applies both in this order.
    """
