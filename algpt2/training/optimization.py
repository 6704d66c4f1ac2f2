"""The optimizers and learning-rate schedules of both frameworks: their names, constants and lengths."""

from algpt2.errors import InputError

HYPERPARAMETERS = {
    "adamw": {"betas": (0.9, 0.999), "epsilon": 1e-8},
    # PyTorch squares the first epsilon where Shazeer and Stern (2018) add 1e-30.
    "adafactor": {"beta2_decay": -0.8, "epsilons": (1e-15, 1e-3), "clip_threshold": 1.0},
    "sgd": {"momentum": 0.9},
    "lamb": {"betas": (0.9, 0.999), "epsilon": 1e-6},
}
OPTIMIZERS = tuple(HYPERPARAMETERS)
SCHEDULES = ("linear", "cosine", "constant", "wsd")


def hyperparameters(optimizer, beta1=None, beta2=None, epsilon=None):
    """The constants of an optimizer.

    Args:
        optimizer: str, one of `OPTIMIZERS`.
        beta1, beta2, epsilon: float. Other constants of `"adamw"` or `"lamb"`.

    Returns:
        dict of str to float or tuple of float.

    Raises:
        InputError: for another name.

    Example:
        >>> hyperparameters("sgd"), hyperparameters("adamw", beta2=0.95)
        ({'momentum': 0.9}, {'betas': (0.9, 0.95), 'epsilon': 1e-08})
    """
    if optimizer not in HYPERPARAMETERS:
        raise InputError(f"the optimizer is {optimizer!r}; choose one of {', '.join(OPTIMIZERS)}")
    constants = dict(HYPERPARAMETERS[optimizer])
    if "betas" in constants:
        default1, default2 = constants["betas"]
        constants["betas"] = (beta1 or default1, beta2 or default2)
        constants["epsilon"] = epsilon or constants["epsilon"]
    return constants


def default_learning_rate(config, has_weights):
    """The peak of the learning rate where none is given.

    Adam's best rate falls as 1 / width (Yang et al., 2022, https://arxiv.org/abs/2203.03466). It is twice as high where
    residual branches are multiplied by less than 1; docs/results.md has what was measured.

    Args:
        config: `ALGPT2Config`.
        has_weights: bool. Whether weights are trained on, rather than new.

    Returns:
        float.

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> default_learning_rate(ALGPT2Config(n_embd=1000, n_head=10), has_weights=False)
        0.001
    """
    if has_weights:
        return 1e-3
    return min(8e-3, 1 / config.n_embd) * (2 if config.residual_multiplier < 1 else 1)


def optimizer_constants(arguments):
    """The constants of the optimizer of a run.

    Args:
        arguments: `argparse.Namespace` of `algpt2.training.arguments.train_parser`.

    Returns:
        as `hyperparameters`.
    """
    return hyperparameters(arguments.optimizer, arguments.adam_beta1, arguments.adam_beta2, arguments.adam_epsilon)


def final_decay_steps(schedule, warmup_steps, steps, decay_steps=None):
    """The length of the decay that ends a schedule.

    Args:
        schedule: str, one of `SCHEDULES`.
        warmup_steps: int.
        steps: int. All steps, the warm-up included.
        decay_steps: int, used by `"wsd"` (warm-up, stable, decay) alone; by default a tenth of `steps`, as in Hu et
            al. (2024, https://arxiv.org/abs/2404.06395).

    Returns:
        int; 0 for `"constant"`.

    Raises:
        InputError: for another name, or if the warm-up and the decay do not fit into the steps.

    Example:
        >>> final_decay_steps("wsd", warmup_steps=10, steps=100), final_decay_steps("linear", 10, 100)
        (10, 90)
    """
    if schedule not in SCHEDULES:
        raise InputError(f"the schedule is {schedule!r}; choose one of {', '.join(SCHEDULES)}")
    if warmup_steps > steps:
        raise InputError(f"--warmup-steps {warmup_steps} is more than the {steps} steps of the run")
    if schedule == "constant":
        return 0
    if schedule != "wsd":
        return steps - warmup_steps
    if decay_steps is None:
        decay_steps = min(max(1, steps // 10), steps - warmup_steps)
    if warmup_steps + decay_steps > steps:
        raise InputError(
            f"{warmup_steps} warm-up steps and {decay_steps} decay steps are more than the {steps} steps of the run; "
            "lower one of them"
        )
    return decay_steps
