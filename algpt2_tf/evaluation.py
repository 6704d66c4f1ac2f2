"""A checkpoint as TensorFlow evaluates it: its model, and the losses of tokens."""

import keras
import numpy as np
import tensorflow as tf

from algpt2.errors import InputError
from algpt2.evaluation.command import run_evaluation
from algpt2_tf.causal_lm import TFALGPT2LMHeadModel
from algpt2_tf.devices import select_device
from algpt2_tf.tfrecord_blocks import TFRecordBlocks


def open_model(checkpoint):
    """The model of a checkpoint.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.

    Returns:
        `TFALGPT2LMHeadModel`, without a preprocessor.

    Raises:
        algpt2.errors.InputError: if the checkpoint cannot be read.
    """
    return TFALGPT2LMHeadModel.from_checkpoint(checkpoint, preprocessor=None)


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


def order_function(model):
    """A compiled function from ids, int32 (batch, length), to the sentence orders that a model predicts, int (batch,).

    Args:
        model: `TFALGPT2ForPreTraining`.
    """

    @tf.function(reduce_retracing=True)
    def compute(ids):
        logits = model({"token_ids": ids, "padding_mask": tf.ones_like(ids)}, training=False)["sop_logits"]
        return tf.argmax(logits, axis=-1)

    return lambda ids: compute(np.asarray(ids, dtype=np.int32)).numpy()


def class_logits_function(model):
    """A compiled function from ids and mask, int32 (batch, length), to the logits of the classes, (batch, classes).

    Args:
        model: `TFALGPT2TextClassifier`.
    """

    @tf.function(reduce_retracing=True)
    def compute(ids, mask):
        return tf.cast(model({"token_ids": ids, "padding_mask": mask}, training=False), tf.float32)

    return lambda ids, mask: compute(np.asarray(ids, "int32"), np.asarray(mask, "int32")).numpy()


def losses_at_depths(model, configs):
    """The loss function of a model at one depth after the other.

    Args:
        model: `TFALGPT2LMHeadModel`.
        configs: list of `ALGPT2Config`, those of the model at each depth.

    Yields:
        function of `token_loss_function`.
    """
    for config in configs:
        _, states = model.backbone.at_depth(config)(model.input)
        yield token_loss_function(keras.Model(model.input, model.logits_of(states)))


def packed_text(dataset, protocol):
    """The text that TFRecords hold out.

    Args:
        dataset: str. Their directory.
        protocol: str. How it is to be cut.

    Returns:
        `algpt2.data.tokenized_text.TokenizedText`.

    Raises:
        algpt2.errors.InputError: if they are damaged, or hold it for another protocol.
    """
    blocks = TFRecordBlocks(dataset)
    if (protocol == "line") != (blocks.eval_protocol == "line"):
        raise InputError(
            f"{dataset}: holds its text for --protocol {blocks.eval_protocol}, not {protocol}; give a --dataset"
        )
    return blocks.validation()


def run(arguments):
    """The program of evaluation: see `algpt2.evaluation.command.run_evaluation`."""
    select_device(arguments.device)

    def losses_of(checkpoint, configs):
        return losses_at_depths(open_model(checkpoint), configs)

    run_evaluation(arguments, losses_of, packed_text)
