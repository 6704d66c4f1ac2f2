"""AdamW and the learning-rate schedules with the mathematics of PyTorch and transformers."""

import math

import keras
import tensorflow as tf
from keras import ops


@keras.saving.register_keras_serializable(package="algpt2")
class AdamW(keras.optimizers.AdamW):
    """AdamW (Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101) as `torch.optim.AdamW` computes it.

    It differs from Keras's in two ways: epsilon is added to the bias-corrected second moment, and gradients are
    clipped by their norm over all replicas, where Keras clips those of each replica on their own.

    Args:
        max_grad_norm: float. The global norm that gradients are clipped to; `None` does not clip.
        **kwargs: as in `keras.optimizers.AdamW`; epsilon defaults to 1e-8.
    """

    def __init__(self, *args, epsilon=1e-8, max_grad_norm=None, **kwargs):
        super().__init__(*args, epsilon=epsilon, **kwargs)
        self.max_grad_norm = max_grad_norm

    def _clip_gradients(self, grads):
        if self.max_grad_norm is None:
            return grads
        grads = [tf.convert_to_tensor(grad) for grad in grads]
        context = tf.distribute.get_replica_context()
        replicas = context.num_replicas_in_sync if context else 1
        if replicas > 1:
            grads = context.all_reduce(tf.distribute.ReduceOp.SUM, grads)
        scale = ops.minimum(1.0, self.max_grad_norm / (tf.linalg.global_norm(grads) + 1e-6))
        # Keras sums the gradients of the replicas afterwards.
        return [grad * tf.cast(scale / replicas, grad.dtype) for grad in grads]

    def update_step(self, gradient, variable, learning_rate):
        learning_rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        step = ops.cast(self.iterations + 1, variable.dtype)
        index = self._get_variable_index(variable)
        first, second = self._momentums[index], self._velocities[index]
        self.assign_add(first, (gradient - first) * (1 - self.beta_1))
        self.assign_add(second, (ops.square(gradient) - second) * (1 - self.beta_2))
        # 1 - beta ** step, without the cancellation that float32 suffers in the first steps.
        first_unbiased = first / -ops.expm1(step * math.log(self.beta_1))
        second_unbiased = second / -ops.expm1(step * math.log(self.beta_2))
        self.assign_sub(variable, learning_rate * first_unbiased / (ops.sqrt(second_unbiased) + self.epsilon))

    def get_config(self):
        return {**super().get_config(), "max_grad_norm": self.max_grad_norm}


@keras.saving.register_keras_serializable(package="algpt2")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then constant, linear or cosine decay to 0, as `transformers.get_scheduler` names them.

    Args:
        decay: str. `"constant"`, `"linear"` or `"cosine"`.
        peak: float. The learning rate after warm-up.
        warmup_steps: int.
        steps: int. All steps, the warm-up included.

    Example:
        >>> float(WarmupSchedule("linear", peak=1.0, warmup_steps=2, steps=6)(4))
        0.5
    """

    def __init__(self, decay, peak, warmup_steps, steps):
        self.decay, self.peak, self.warmup_steps, self.steps = decay, peak, warmup_steps, steps

    def __call__(self, step):
        step = ops.cast(step, "float32")
        progress = ops.clip((step - self.warmup_steps) / max(1, self.steps - self.warmup_steps), 0.0, 1.0)
        factor = {
            "constant": ops.ones_like(step),
            "linear": 1.0 - progress,
            "cosine": 0.5 * (1.0 + ops.cos(progress * math.pi)),
        }[self.decay]
        return self.peak * ops.where(step < self.warmup_steps, step / max(1, self.warmup_steps), factor)

    def get_config(self):
        return {"decay": self.decay, "peak": self.peak, "warmup_steps": self.warmup_steps, "steps": self.steps}
