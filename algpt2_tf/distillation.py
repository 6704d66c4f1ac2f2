"""The teacher of a run in TensorFlow."""

import keras
import tensorflow as tf

from algpt2.training.loss import SoftTargets
from algpt2_tf.backbone import TFALGPT2Backbone
from algpt2_tf.causal_lm import TFALGPT2LMHeadModel
from algpt2_tf.devices import DTYPE_POLICIES
from algpt2_tf.loss import head_weight
from algpt2_tf.weights import assign_weights


def make_teacher(run):
    """The teacher of a run; to be called in the scope of the strategy.

    Args:
        run: `algpt2.training.run.Run`, which gives away its weights.

    Returns:
        `Teacher`; `None` if the run has none.
    """
    taken, arguments = run.take_teacher(), run.arguments
    if not taken:
        return None
    config, weights = taken
    policy = DTYPE_POLICIES[arguments.teacher_precision or arguments.precision]
    model = TFALGPT2LMHeadModel(TFALGPT2Backbone(config, dtype=keras.DTypePolicy(policy).compute_dtype))
    assign_weights(model, weights, source=arguments.teacher)
    return Teacher(model, arguments.distill_weight, arguments.temperature)


class Teacher:
    """A language model whose distribution another one learns; it is not trained, nor a part of the one that is.

    Args:
        model: `TFALGPT2LMHeadModel`, which computes in its own dtype.
        share: float. The part of the loss that is the teacher's.
        temperature: float. What the logits of both are divided by.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> teacher = Teacher(TFALGPT2LMHeadModel(TFALGPT2Backbone(ALGPT2Config.from_preset("algpt2-tiny"))), 0.5, 2.0)
        >>> ids = tf.constant([[1, 2, 3]])
        >>> teacher.soft_targets({"token_ids": ids, "padding_mask": tf.ones_like(ids)}).states.shape
        TensorShape([2, 64])
    """

    def __init__(self, model, share, temperature):
        self.model, self.share, self.temperature = model, share, temperature

    def soft_targets(self, inputs):
        """What it says of the next tokens of a batch.

        Args:
            inputs: dict of `token_ids` and `padding_mask`, int32 (batch, length).

        Returns:
            `algpt2.training.loss.SoftTargets` of batch x (length - 1) tokens, without gradients.
        """
        states, weight = self.model.backbone(inputs, training=False), head_weight(self.model)
        states = tf.reshape(tf.stop_gradient(states)[:, :-1], (-1, weight.shape[1]))
        return SoftTargets(states, weight, self.share, self.temperature)
