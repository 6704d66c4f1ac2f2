"""A checkpoint as TensorFlow evaluates it: its model, and the losses of tokens."""

import numpy as np
import tensorflow as tf

from algpt2.errors import InputError
from algpt2.evaluation.command import run_evaluation
from algpt2_tf.backbone import TFALGPT2Backbone
from algpt2_tf.causal_lm import TFALGPT2LMHeadModel
from algpt2_tf.devices import select_device
from algpt2_tf.tfrecord_blocks import TFRecordBlocks
from algpt2_tf.weights import assign_weights, canonical_weights


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


def losses_at_depths(checkpoint, depths, arguments):
    """The loss function of a checkpoint at one depth after the other; the weights are loaded once.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`.
        depths: list of int; `None` for the checkpoint's own.
        arguments: `argparse.Namespace`, of which nothing is used.

    Yields:
        function of `token_loss_function`.
    """
    loaded = open_model(checkpoint)
    for depth in depths:
        model = loaded
        if depth and depth != loaded.config.n_layer:
            model = TFALGPT2LMHeadModel(TFALGPT2Backbone(checkpoint.at_depth(depth)))
            assign_weights(model, canonical_weights(loaded))
        yield token_loss_function(model)


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
    found = blocks.index["eval_protocol"]
    if (protocol == "line") != (found == "line"):
        raise InputError(f"{dataset}: holds its text for --protocol {found}, not {protocol}; give a --dataset")
    return blocks.validation()


def run(arguments):
    """The program of evaluation: see `algpt2.evaluation.command.run_evaluation`."""
    select_device(arguments.device)
    run_evaluation(arguments, losses_at_depths, packed_text)
