"""Optimizers and learning-rate schedulers from torch and transformers, and LAMB."""

import torch
from transformers import get_scheduler

from algpt2.training.optimization import final_decay_steps, hyperparameters

SCHEDULER_TYPES = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant_with_warmup",
    "wsd": "warmup_stable_decay",
}


def create_optimizer(model, name, learning_rate, weight_decay, constants=None):
    """An optimizer of the parameters of a model that require a gradient.

    Args:
        model: `torch.nn.Module`.
        name: str, one of `algpt2.training.optimization.OPTIMIZERS`.
        learning_rate: float. The peak of the schedule.
        weight_decay: float. Not applied to vectors, which are the biases and the layer norms.
        constants: dict as of `algpt2.training.optimization.hyperparameters`, which gives them by default.

    Returns:
        `torch.optim.Optimizer`, with one group of parameters that decay and one of those that do not.

    Raises:
        algpt2.errors.InputError: for another name.

    Example:
        >>> optimizer = create_optimizer(torch.nn.Linear(3, 2), "adamw", 1e-3, weight_decay=0.01)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.01, 0.0]
    """
    constants = constants or hyperparameters(name)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay}
    vectors = {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0}
    if name == "adamw":
        return torch.optim.AdamW([matrices, vectors], learning_rate, betas=constants["betas"], eps=constants["epsilon"])
    if name == "adafactor":
        return torch.optim.Adafactor(
            [matrices, vectors],
            learning_rate,
            beta2_decay=constants["beta2_decay"],
            eps=constants["epsilons"],
            d=constants["clip_threshold"],
        )
    if name == "sgd":
        return torch.optim.SGD([matrices, vectors], learning_rate, momentum=constants["momentum"])
    return Lamb([matrices, vectors], learning_rate, betas=constants["betas"], eps=constants["epsilon"])


class Lamb(torch.optim.Optimizer):
    """LAMB (You et al., 2020, https://arxiv.org/abs/1904.00962) as ALBERT computes it.

    The moments are not corrected for bias, weight decay is a part of the update that the trust ratio scales, and
    vectors have no trust ratio. It takes sharded parameters, whose norms are those of all shards.

    Args:
        params: as in `torch.optim.AdamW`.
        lr: float.
        betas: tuple of two floats, the decay of the first and of the second moment.
        eps: float, added to the root of the second moment.
        weight_decay: float.
    """

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-6, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        """Update the parameters; `closure` is as in `torch.optim.Optimizer.step`."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, self.state[parameter], **group)
        return loss

    def _update(self, parameter, state, lr, betas, eps, weight_decay, **_):
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        first, second = state["exp_avg"], state["exp_avg_sq"]
        first.lerp_(parameter.grad, 1 - betas[0])
        second.lerp_(parameter.grad.square(), 1 - betas[1])
        update = first / (second.sqrt() + eps) + weight_decay * parameter
        if parameter.ndim > 1:
            weight_norm, update_norm = torch.linalg.vector_norm(parameter), torch.linalg.vector_norm(update)
            ratio = weight_norm / update_norm
            update = update * torch.where((weight_norm > 0) & (update_norm > 0), ratio, torch.ones_like(ratio))
        parameter.sub_(lr * update)


def create_scheduler(optimizer, name, warmup_steps, steps, decay_steps=None):
    """A scheduler of transformers: linear warm-up, then a constant rate or a decay to 0.

    Args:
        optimizer: `torch.optim.Optimizer`.
        name: str, one of `algpt2.training.optimization.SCHEDULES`.
        warmup_steps: int.
        steps: int. All steps, the warm-up included.
        decay_steps: int. The length of the final decay of `"wsd"`; by default a tenth of `steps`.

    Returns:
        `torch.optim.lr_scheduler.LambdaLR`.

    Raises:
        algpt2.errors.InputError: for another name, or if the warm-up and the decay do not fit into the steps.

    Example:
        >>> optimizer = create_optimizer(torch.nn.Linear(3, 2), "sgd", 0.5, weight_decay=0.0)
        >>> create_scheduler(optimizer, "linear", warmup_steps=2, steps=6).get_last_lr()
        [0.0, 0.0]
    """
    decay_steps = final_decay_steps(name, warmup_steps, steps, decay_steps)
    options = {"num_decay_steps": decay_steps} if name == "wsd" else None
    return get_scheduler(SCHEDULER_TYPES[name], optimizer, warmup_steps, steps, options)
