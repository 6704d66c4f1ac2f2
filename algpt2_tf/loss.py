"""The loss of a language model: under Keras's `fit` over the tokens that count, and in chunks of tokens."""

import copy
import warnings

import keras
import tensorflow as tf

from algpt2.training.loss import IGNORED, LOGITS_IN_CHUNK, tokens_in_chunk


class LossOverTokens:
    """Mixin of a Keras model: its loss in a step is the mean over the tokens that count, on all replicas.

    Keras's is the mean over all tokens of a replica, padding too, and then the mean over the replicas, empty ones too.
    The loss that `fit` and `evaluate` show weights every step by its tokens. A label of -100 does not count.
    """

    def compile(self, optimizer="auto", loss="auto", **kwargs):
        super().compile(optimizer, keras.tree.map_structure(_mean_over_elements, loss), **kwargs)

    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss, metrics = self._loss_over_tokens(data, training=True)
            loss = self.optimizer.scale_loss(loss)
        variables = self.trainable_weights
        if variables:
            # Keras sums the gradients of the replicas.
            self.optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        else:
            warnings.warn("the model has no trainable weights: nothing is learned", stacklevel=2)
        return metrics()

    def test_step(self, data):
        _, metrics = self._loss_over_tokens(data, training=False)
        return metrics()

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        # Keras itself calls it, with the weights as they were given, before the first step under a strategy.
        return super().compute_loss(x, y, y_pred, _of_each_token(sample_weight, y_pred), training)

    def _loss_over_tokens(self, data, training):
        """This replica's share of the loss of a step, and a function that updates the metrics."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self(x, training=training)
        y, sample_weight = _without_ignored(y, y_pred, sample_weight)
        tokens = tf.reduce_sum(keras.tree.flatten(sample_weight)[0])
        all_tokens = _sum_over_replicas(tokens)
        is_mean = all(getattr(loss, "reduction", MEAN) == MEAN for loss in keras.tree.flatten(self.loss))
        weights = keras.tree.map_structure(_scaled, sample_weight) if is_mean else sample_weight
        loss = self.compute_loss(x, y, y_pred, weights, training=training)
        mean = tf.math.divide_no_nan(tf.cast(loss, tokens.dtype) * all_tokens, tokens)
        self._loss_tracker.update_state(mean, sample_weight=tokens)
        return loss, lambda: self.compute_metrics(x, y, y_pred, sample_weight)


# Keras's name for the mean over all elements of a replica, divided by the number of replicas.
MEAN = "sum_over_batch_size"


def _mean_over_elements(loss):
    """A loss of Keras that takes a mean, of whichever kind, as one over all elements, whose weights `_scaled` gives."""
    if getattr(loss, "reduction", None) not in ("mean", "mean_with_sample_weight"):
        return loss
    loss = copy.copy(loss)
    loss.reduction = MEAN
    return loss


def _scaled(weights):
    """Weights by which the mean over the elements of a replica becomes its share of the mean over all replicas."""
    elements = tf.cast(tf.size(weights) * tf.distribute.get_strategy().num_replicas_in_sync, weights.dtype)
    return weights * tf.math.divide_no_nan(elements, _sum_over_replicas(tf.reduce_sum(weights)))


def _sum_over_replicas(value):
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def _without_ignored(y, y_pred, sample_weight):
    """Labels that all are tokens, and the weight of each: 0 where it is -100. Dicts of them for several outputs."""
    if isinstance(y_pred, dict):
        pairs = {
            name: _without_ignored(y[name], y_pred[name], sample_weight and sample_weight.get(name)) for name in y_pred
        }
        return tuple({name: pair[index] for name, pair in pairs.items()} for index in range(2))
    weights = tf.ones(tf.shape(y_pred)[:-1], keras.backend.result_type(keras.config.floatx(), "float32"))
    if sample_weight is not None:
        weights *= _of_each_token(tf.cast(sample_weight, weights.dtype), y_pred)
        weights.set_shape(y_pred.shape[:-1])
    y = tf.convert_to_tensor(y)
    if y.shape.rank == weights.shape.rank:
        weights *= tf.cast(counted(y), weights.dtype)
        y = tf.where(counted(y), y, tf.zeros_like(y))
    return y, weights


def _of_each_token(sample_weight, y_pred):
    """Weights that broadcast to those of tokens, of weights for each token or for each sequence; dicts of them too."""
    if sample_weight is None or isinstance(y_pred, dict):
        return sample_weight and {name: _of_each_token(sample_weight.get(name), y_pred[name]) for name in y_pred}
    rank = len(y_pred.shape) - 1
    if keras.utils.is_keras_tensor(sample_weight):
        return keras.ops.expand_dims(sample_weight, tuple(range(len(sample_weight.shape), rank)))
    # A graph that has seen weights of both kinds does not know the rank.
    ones = tf.ones(tf.maximum(rank - tf.rank(sample_weight), 0)[None], tf.int32)
    return tf.reshape(sample_weight, tf.concat((tf.shape(sample_weight), ones), axis=0))


def next_token_loss(model, states, labels, soft=None):
    """The sum of the negative log-likelihoods of the next tokens, or with a teacher of the losses of both.

    Args:
        model: `TFALGPT2LMHeadModel`.
        states: float (batch, length, E), the output of its backbone.
        labels: int32 (batch, length), -100 where ignored; each position predicts the label of the next one.
        soft: `algpt2.training.loss.SoftTargets` of batch x (length - 1) tokens, or `None`.

    Returns:
        tuple of the loss and its parts, as of `linear_distillation`.
    """
    weight = head_weight(model)
    states, labels = tf.reshape(states[:, :-1], (-1, weight.shape[1])), tf.reshape(labels[:, 1:], (-1,))
    return _in_chunks(states, weight, labels, LOGITS_IN_CHUNK["cpu"], soft)


def head_weight(model):
    """The weight of the head of a `TFALGPT2LMHeadModel`, float (V, E)."""
    embedding = model.backbone.token_embedding
    if embedding.tie_weights:
        return tf.convert_to_tensor(embedding.embeddings)
    return tf.transpose(tf.convert_to_tensor(embedding.reverse_embeddings))


def linear_cross_entropy(states, weight, labels, logits_in_chunk=LOGITS_IN_CHUNK["cpu"]):
    """The sum of the cross-entropies of the labels and softmax(states weightᵀ), chunk by chunk.

    The gradients are computed with the loss, so that no chunk is computed twice.

    Args:
        states: float (tokens, E).
        weight: float (V, E). The products are computed in the dtype of `states`, the rest in float32 at least.
        labels: int32 (tokens,), -100 where ignored.
        logits_in_chunk: int, as in `algpt2.training.loss.tokens_in_chunk`.

    Returns:
        scalar, float32 at least, in nats.

    Example:
        >>> loss = linear_cross_entropy(tf.zeros((3, 2)), tf.ones((4, 2)), tf.constant([0, 3, -100]))
        >>> round(float(loss), 4)  # 2 log 4
        2.7726
    """
    return _in_chunks(states, weight, labels, logits_in_chunk)[0]


def linear_distillation(states, weight, labels, soft, logits_in_chunk=LOGITS_IN_CHUNK["cpu"]):
    """The loss of Hinton et al.: (1 - share) x cross-entropy + share x T² x KL(teacher || model), chunk by chunk.

    Args:
        states, weight, labels: as in `linear_cross_entropy`.
        soft: `algpt2.training.loss.SoftTargets`. T is its temperature, which divides the logits on both sides of the
            divergence; that is summed over the labels that count.
        logits_in_chunk: as in `linear_cross_entropy`, those of both models.

    Returns:
        tuple of the loss, a scalar, and (2,) without gradients, the cross-entropy and T² x KL; sums over the tokens, in
        nats, float32 at least.

    References:
        Hinton et al., 2015, https://arxiv.org/abs/1503.02531, section 2.

    Example:
        >>> from algpt2.training.loss import SoftTargets
        >>> states, weight, labels = tf.zeros((3, 2)), tf.ones((4, 2)), tf.constant([0, 3, -100])
        >>> soft = SoftTargets(tf.zeros((3, 5)), tf.ones((4, 5)), share=0.25, temperature=2.0)
        >>> loss, parts = linear_distillation(states, weight, labels, soft)
        >>> round(float(loss), 4), float(parts[1])  # the teacher says the same
        (2.0794, 0.0)
    """
    return _in_chunks(states, weight, labels, logits_in_chunk, soft)


def _in_chunks(states, weight, labels, logits_in_chunk, soft=None):
    dtype = keras.backend.result_type(states.dtype, "float32")
    width = weight.shape[1]
    rows = tokens_in_chunk(*weight.shape, logits_in_chunk // 2 if soft else logits_in_chunk)
    count = tf.shape(labels)[0]
    if labels.shape[0] is not None:
        count = labels.shape[0]
        rows = min(rows, count)
    chunks = -(-count // rows)
    padding = chunks * rows - count
    share = soft.share if soft else 0.0

    def split(states):
        return tf.reshape(tf.pad(states, ((0, padding), (0, 0))), (chunks, rows, states.shape[1]))

    @tf.custom_gradient
    def compute(states, weight):
        matrix = tf.cast(weight, states.dtype)
        parts = split(states)
        targets = tf.reshape(tf.pad(labels, ((0, padding),), constant_values=IGNORED), (chunks, rows))
        if soft:
            teacher_parts, teacher_matrix = split(soft.states), tf.cast(soft.weight, soft.states.dtype)

        def add_chunk(index, sums, weight_gradient, state_gradients):
            part, target = parts[index], targets[index]
            logits = tf.cast(tf.matmul(part, matrix, transpose_b=True), dtype)
            factors = tf.cast(counted(target), dtype)
            losses, gradient = _softmax_cross_entropy(logits, tf.maximum(target, 0))
            divergences = tf.zeros_like(losses)
            if soft:
                teacher_logits = tf.cast(tf.matmul(teacher_parts[index], teacher_matrix, transpose_b=True), dtype)
                divergences, soft_gradient = _divergence(logits, teacher_logits, soft.temperature)
                gradient = (1 - share) * gradient + share * soft_gradient
            gradient = tf.cast(gradient * factors[:, None], states.dtype)
            sums += tf.reduce_sum(tf.stack((losses, divergences)) * factors, axis=1)
            weight_gradient += tf.cast(tf.matmul(gradient, part, transpose_a=True), dtype)
            state_gradients = state_gradients.write(index, tf.matmul(gradient, matrix))
            return index + 1, sums, weight_gradient, state_gradients

        start = (
            tf.constant(0),
            tf.zeros(2, dtype),
            tf.zeros(weight.shape, dtype),
            tf.TensorArray(states.dtype, chunks, element_shape=(rows, width)),
        )
        _, sums, weight_gradient, state_gradients = tf.while_loop(
            lambda index, *_: index < chunks, add_chunk, start, parallel_iterations=1
        )
        state_gradient = tf.reshape(state_gradients.stack(), (-1, width))[:count]

        def gradients(upstream, _):
            return (
                tf.cast(tf.cast(state_gradient, dtype) * upstream, states.dtype),
                tf.cast(weight_gradient * upstream, weight.dtype),
            )

        return ((1 - share) * sums[0] + share * sums[1], sums), gradients

    return compute(states, weight)


def counted(labels):
    """bool: which of the labels, int32, are part of the loss."""
    return labels != IGNORED


def _softmax_cross_entropy(logits, labels):
    """The cross-entropies (rows,), and the gradients (rows, V) of each with its logits."""
    shifted = logits - tf.reduce_max(logits, axis=-1, keepdims=True)
    exponentials = tf.exp(shifted)
    sums = tf.reduce_sum(exponentials, axis=-1, keepdims=True)
    # A comparison instead of a scatter, which compilers join with the division.
    is_label = tf.range(tf.shape(logits)[1])[None] == labels[:, None]
    losses = tf.math.log(sums[:, 0]) - tf.reduce_sum(shifted * tf.cast(is_label, shifted.dtype), axis=-1)
    return losses, exponentials / sums - tf.cast(is_label, logits.dtype)


def _divergence(logits, teacher_logits, temperature):
    """T² KL(teacher || model), (rows,), and its gradient with the logits, (rows, V)."""
    model, teacher = (tf.nn.log_softmax(both / temperature) for both in (logits, teacher_logits))
    probabilities = tf.exp(teacher)
    losses = tf.reduce_sum(probabilities * (teacher - model), axis=-1) * temperature**2
    return losses, (tf.exp(model) - probabilities) * temperature
