"""Perplexity of a checkpoint in TensorFlow: `python -m algpt2_tf.evaluate DIR`."""

import numpy as np
import tensorflow as tf

from algpt2.commands import evaluate_parser, print_evaluation, validation_text
from algpt2.errors import exit_on_error
from algpt2.evaluation import evaluate
from algpt2_tf.causal_lm import TFALGPT2LMHeadModel


def token_loss_function(model):
    """A compiled function from ids, int32 (batch, length), to the losses of their successors, (batch, length - 1).

    Args:
        model: `TFALGPT2LMHeadModel`.
    """

    @tf.function(reduce_retracing=True)
    def compute(ids):
        logits = model({"token_ids": ids[:, :-1], "padding_mask": tf.ones_like(ids[:, :-1])}, training=False)
        if logits.dtype != tf.float64:
            logits = tf.cast(logits, tf.float32)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(ids[:, 1:], logits)

    return lambda ids: compute(np.asarray(ids, dtype=np.int32)).numpy()


def main(argv=None):
    parser = evaluate_parser("python -m algpt2_tf.evaluate", "Perplexity of a checkpoint, computed by TensorFlow.")
    arguments = parser.parse_args(argv)
    with exit_on_error(parser.prog):
        text, length = validation_text(arguments.checkpoint, arguments.dataset, arguments.length)
        model = TFALGPT2LMHeadModel.from_pretrained(arguments.checkpoint, preprocessor=None)
        losses = token_loss_function(model)
        result = evaluate(losses, text, length, arguments.batch_size, progress=True)
        print_evaluation(result, arguments.json)


if __name__ == "__main__":
    main()
