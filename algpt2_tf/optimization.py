"""Optimizers and learning-rate schedules with the mathematics of PyTorch and transformers."""

import math

import keras
import tensorflow as tf
from keras import ops

from algpt2.training.optimization import final_decay_steps, hyperparameters


def create_optimizer(name, learning_rate, weight_decay, max_grad_norm=None, constants=None):
    """An optimizer to compile a model with; to be called in the scope of the strategy.

    Args:
        name: str, one of `algpt2.training.optimization.OPTIMIZERS`.
        learning_rate: float or `keras.optimizers.schedules.LearningRateSchedule`.
        weight_decay: float. Not applied to vectors, which are the biases and the layer norms.
        max_grad_norm: float. The norm of all gradients together that they are clipped to; `None` does not clip.
        constants: dict as of `algpt2.training.optimization.hyperparameters`, which gives them by default.

    Returns:
        `keras.optimizers.Optimizer`.

    Raises:
        algpt2.errors.InputError: for another name.

    Example:
        >>> create_optimizer("lamb", 1e-3, weight_decay=0.01).weight_decay
        0.01
    """
    constants = constants or hyperparameters(name)
    options = {"weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
    if name == "sgd":
        return SGD(learning_rate, momentum=constants["momentum"], **options)
    if name == "adafactor":
        epsilon_1, epsilon_2 = constants["epsilons"]
        return Adafactor(
            learning_rate,
            beta_2_decay=constants["beta2_decay"],
            epsilon_1=epsilon_1,
            epsilon_2=epsilon_2,
            clip_threshold=constants["clip_threshold"],
            **options,
        )
    beta_1, beta_2 = constants["betas"]
    optimizer = {"adamw": AdamW, "lamb": Lamb}[name]
    return optimizer(learning_rate, beta_1=beta_1, beta_2=beta_2, epsilon=constants["epsilon"], **options)


class _Clipped:
    """Clips the gradients by their norm over all replicas, and leaves weight decay to `update_step`.

    Keras clips the gradients of each replica on their own, and decays weights before the update.
    """

    def __init__(self, *args, max_grad_norm=None, **kwargs):
        super().__init__(*args, **kwargs)
        self.max_grad_norm = max_grad_norm

    def _all_reduce_sum_gradients(self, grads_and_vars):
        dense = [(tf.convert_to_tensor(gradient), variable) for gradient, variable in grads_and_vars]
        grads_and_vars = super()._all_reduce_sum_gradients(dense)
        if self.max_grad_norm is None:
            return grads_and_vars
        norm = tf.linalg.global_norm([gradient for gradient, _ in grads_and_vars])
        scale = ops.minimum(1.0, self.max_grad_norm / (norm + 1e-6))
        return [(gradient * tf.cast(scale, gradient.dtype), variable) for gradient, variable in grads_and_vars]

    def _apply_weight_decay(self, variables):
        pass

    def _decay_rate(self, variable):
        return (self.weight_decay or 0.0) if len(variable.shape) > 1 and self._use_weight_decay(variable) else 0.0

    def get_config(self):
        return {**super().get_config(), "max_grad_norm": self.max_grad_norm}


@keras.saving.register_keras_serializable(package="algpt2")
class AdamW(_Clipped, keras.optimizers.AdamW):
    """AdamW (Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101) as `torch.optim.AdamW` computes it.

    Keras's adds epsilon to the second moment before its bias is corrected.

    Args:
        max_grad_norm: float. The global norm that gradients are clipped to; `None` does not clip.
        **kwargs: as in `keras.optimizers.AdamW`; epsilon defaults to 1e-8. Vectors do not decay.
    """

    def __init__(self, *args, epsilon=1e-8, **kwargs):
        super().__init__(*args, epsilon=epsilon, **kwargs)

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
        update = first_unbiased / (ops.sqrt(second_unbiased) + self.epsilon)
        self.assign_sub(variable, learning_rate * (update + self._decay_rate(variable) * variable))


@keras.saving.register_keras_serializable(package="algpt2")
class SGD(_Clipped, keras.optimizers.SGD):
    """Gradient descent with momentum as `torch.optim.SGD` computes it.

    Keras's multiplies the gradients by the learning rate before they enter the momentum, and decays the weights apart
    from it.

    Args:
        max_grad_norm: float. The global norm that gradients are clipped to; `None` does not clip.
        **kwargs: as in `keras.optimizers.SGD`, momentum not 0 and `nesterov` not set. Vectors do not decay.
    """

    def update_step(self, gradient, variable, learning_rate):
        gradient = ops.cast(gradient, variable.dtype) + self._decay_rate(variable) * variable
        momentum = self.momentums[self._get_variable_index(variable)]
        self.assign(momentum, self.momentum * momentum + gradient)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * momentum)


@keras.saving.register_keras_serializable(package="algpt2")
class Adafactor(_Clipped, keras.optimizers.Adafactor):
    """Adafactor (Shazeer and Stern, 2018, https://arxiv.org/abs/1804.04235) as `torch.optim.Adafactor` computes it.

    Keras's adds epsilon to the squared gradients, while PyTorch bounds their means from below; it decays weights before
    it takes their norm, and keeps the second moment of matrices in full.

    Args:
        max_grad_norm: float. The global norm that gradients are clipped to; `None` does not clip.
        **kwargs: as in `keras.optimizers.Adafactor`. Vectors do not decay.
    """

    def build(self, variables):
        if self.built:
            return
        keras.optimizers.Optimizer.build(self, variables)
        # For a matrix the means of its rows and of its columns, for a vector all of it.
        self._moments = []
        for variable in variables:
            shape = tuple(variable.shape)
            kept = [(*shape[:-1], 1), (*shape[:-2], 1, shape[-1])] if len(shape) > 1 else [shape]
            self._moments.append(
                [self.add_variable(part, dtype=variable.dtype, name=f"{variable.name}_moment") for part in kept]
            )

    def update_step(self, gradient, variable, learning_rate):
        learning_rate = ops.cast(learning_rate, variable.dtype)
        gradient = ops.cast(gradient, variable.dtype)
        step = ops.cast(self.iterations + 1, variable.dtype)
        size = ops.maximum(self.epsilon_2, self._rms(variable)) * ops.minimum(learning_rate, ops.rsqrt(step))
        moments = self._moments[self._get_variable_index(variable)]
        squares = ops.square(gradient)
        for moment, axis in zip(moments, (-1, -2), strict=False):
            mean = ops.mean(squares, axis, keepdims=True) if len(moments) > 1 else squares
            self.assign_add(moment, (mean - moment) * step**self.beta_2_decay)
        if len(moments) > 1:
            rows, columns = moments
            second = rows / ops.maximum(ops.mean(rows, -2, keepdims=True), self.epsilon_1) * columns
        else:
            second = ops.convert_to_tensor(moments[0])
        update = gradient * ops.rsqrt(ops.maximum(second, self.epsilon_1**2))
        update = update / ops.maximum(1.0, self._rms(update) / self.clip_threshold)
        self.assign_sub(variable, learning_rate * self._decay_rate(variable) * variable + size * update)


@keras.saving.register_keras_serializable(package="algpt2")
class Lamb(_Clipped, keras.optimizers.Lamb):
    """LAMB (You et al., 2020, https://arxiv.org/abs/1904.00962) as ALBERT computes it.

    The moments are not corrected for bias, weight decay is a part of the update that the trust ratio scales, and
    vectors have no trust ratio. Keras's corrects the moments, decays the weights on their own and has trust ratios for
    vectors.

    Args:
        max_grad_norm: float. The global norm that gradients are clipped to; `None` does not clip.
        **kwargs: as in `keras.optimizers.Lamb`; epsilon defaults to 1e-6. Vectors do not decay.
    """

    def __init__(self, *args, epsilon=1e-6, **kwargs):
        super().__init__(*args, epsilon=epsilon, **kwargs)

    def update_step(self, gradient, variable, learning_rate):
        gradient = ops.cast(gradient, variable.dtype)
        index = self._get_variable_index(variable)
        first, second = self._momentums[index], self._velocities[index]
        self.assign_add(first, (gradient - first) * (1 - self.beta_1))
        self.assign_add(second, (ops.square(gradient) - second) * (1 - self.beta_2))
        update = first / (ops.sqrt(second) + self.epsilon) + self._decay_rate(variable) * variable
        if len(variable.shape) > 1:
            weight_norm, update_norm = ops.norm(variable), ops.norm(update)
            ratio = weight_norm / update_norm
            update = update * ops.where(ops.logical_and(weight_norm > 0, update_norm > 0), ratio, 1.0)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * update)


@keras.saving.register_keras_serializable(package="algpt2")
class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras's loss scaling, which leaves out a step if the gradients of any replica overflow.

    Keras's looks at those of the first replica only, and lets the others' spoil the weights.

    Args:
        inner_optimizer: `keras.optimizers.Optimizer`.
        **kwargs: as in `keras.optimizers.LossScaleOptimizer`.
    """

    def check_finite(self, grads):
        finite = super().check_finite(grads)
        replica = tf.distribute.get_replica_context()
        overflows = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(tf.logical_not(finite), "int32"))
        return tf.equal(overflows, 0)


@keras.saving.register_keras_serializable(package="algpt2")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a constant rate or a decay to 0, as `transformers.get_scheduler` computes them.

    Args:
        decay: str, one of `algpt2.training.optimization.SCHEDULES`.
        peak: float. The learning rate after warm-up.
        warmup_steps: int.
        steps: int. All steps, the warm-up included.
        decay_steps: int. The length of the final cosine decay of `"wsd"`; by default a tenth of `steps`.

    Raises:
        algpt2.errors.InputError: for another name, or if the warm-up and the decay do not fit into the steps.

    Example:
        >>> float(WarmupSchedule("linear", peak=1.0, warmup_steps=2, steps=6)(4))
        0.5
    """

    def __init__(self, decay, peak, warmup_steps, steps, decay_steps=None):
        self.decay, self.peak, self.warmup_steps, self.steps = decay, peak, warmup_steps, steps
        self.decay_steps = final_decay_steps(decay, warmup_steps, steps, decay_steps)

    def __call__(self, step):
        step = ops.cast(step, keras.config.floatx())
        progress = ops.clip((step - (self.steps - self.decay_steps)) / max(1, self.decay_steps), 0.0, 1.0)
        if self.decay == "constant":
            factor = ops.ones_like(step)
        elif self.decay == "linear":
            factor = 1.0 - progress
        else:
            factor = 0.5 * (1.0 + ops.cos(progress * math.pi))
        return self.peak * ops.where(step < self.warmup_steps, step / max(1, self.warmup_steps), factor)

    def get_config(self):
        names = ("decay", "peak", "warmup_steps", "steps", "decay_steps")
        return {name: getattr(self, name) for name in names}
