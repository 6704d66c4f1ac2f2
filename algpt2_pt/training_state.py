"""The training state of a PyTorch run in and out of a checkpoint, in the files that transformers' Trainer writes."""

import contextlib
import operator
import random

import numpy as np
import torch
from transformers import TrainerControl, TrainerState
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals

from algpt2.checkpoints.formats.pytorch import check_archive, load_reason
from algpt2.errors import InputError
from algpt2.files.reading import INDEX_BYTES, read_json
from algpt2.training.optimization import optimizer_constants
from algpt2.training.run_directory import damaged_checkpoint
from algpt2.training.state import TrainingState, check_training_state, moment_shapes
from algpt2_pt.optimization import create_optimizer, create_scheduler

RANDOM_STATE_FILE = "rng_state.pth"
# Of what Trainer takes over from trainer_state.json.
TRAINER_STATE_TYPES = {
    **dict.fromkeys(("global_step", "max_steps", "num_train_epochs", "num_input_tokens_seen"), int),
    **dict.fromkeys(("epoch", "total_flos"), (int, float)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps", "train_batch_size"), (int, type(None))),
    **dict.fromkeys(("is_local_process_zero", "is_world_process_zero", "is_hyper_param_search"), bool),
    **{"log_history": list, "stateful_callbacks": dict, "best_model_checkpoint": (str, type(None))},
}


def read_training_state(directory, model, arguments):
    """The training state that a checkpoint of Trainer holds, all files of which are checked but the weights.

    Args:
        directory: path of the checkpoint.
        model: `ALGPT2LMHeadModel`, whose parameters the moments belong to.
        arguments: `argparse.Namespace`, those of the run.

    Returns:
        `algpt2.training.state.TrainingState`.

    Raises:
        InputError: if a file is missing, damaged or of another optimizer.
    """
    try:
        for pattern in (TRAINER_STATE_NAME, "optimizer.*", SCHEDULER_NAME, "rng_state*.pth"):
            if not list(directory.glob(pattern)):
                raise InputError(f"{directory / pattern}: no such file")
        with _named(directory / TRAINER_STATE_NAME) as path:
            step = _read_trainer_state(path).global_step
        for path in directory.glob("rng_state*.pth"):
            with _named(path):
                _check_random_states(path)
        with _named(directory / SCHEDULER_NAME) as path:
            iterations = operator.index(_load(path)["last_epoch"])
        with _named(next(directory.glob("optimizer.*"))):
            moments = {
                f"{name}.{moment}": tensor.numpy()
                for name, moments_of_weight in _optimizer_state(directory, model, arguments).items()
                for moment, tensor in moments_of_weight.items()
                if moment != "step"
            }
        loss_scale = None
        if arguments.precision == "fp16":
            with _named(directory / SCALER_NAME) as path:
                scaler = torch.amp.GradScaler("cpu")
                scaler.load_state_dict(_load(path))
                loss_scale = (float(scaler.get_scale()), int(scaler._get_growth_tracker()))
        elif (directory / SCALER_NAME).exists():
            raise InputError(f"{SCALER_NAME} holds a loss scale, which --precision {arguments.precision} has not")
    except InputError as error:
        raise damaged_checkpoint(directory, error) from error
    weights = {name: tuple(parameter.shape) for name, parameter in _trained(model)}
    state = TrainingState(step, iterations, moments, loss_scale)
    check_training_state(state, moment_shapes(arguments.optimizer, weights), directory)
    return state


@contextlib.contextmanager
def _named(path):
    """The path of a file; errors in reading it as an InputError that names it."""
    try:
        yield path
    except InputError:
        raise
    except Exception as error:  # torch raises errors of many kinds
        raise InputError(f"{path.name} holds something else ({load_reason(error)})") from error


def _read_trainer_state(path):
    state = TrainerState(**read_json(path, INDEX_BYTES))
    for name, value in vars(state).items():
        if not isinstance(value, TRAINER_STATE_TYPES.get(name, object)):
            raise ValueError(f"{name} is {value!r}")
    if "TrainerControl" not in state.stateful_callbacks:
        raise ValueError("stateful_callbacks has no TrainerControl, which Trainer replaces as it saves")
    return state


def _check_random_states(path):
    """Raise an error unless generators take the states in a file."""
    with safe_globals():
        states = _load(path)
    random.Random().setstate(states["python"])
    np.random.RandomState().set_state(states["numpy"])
    torch.Generator().set_state(states["cpu"])
    if torch.cuda.is_available() and "cuda" in states:
        for state in states["cuda"] if isinstance(states["cuda"], list) else [states["cuda"]]:
            torch.Generator("cuda").set_state(state)


def _optimizer_state(directory, model, arguments):
    """The state of the optimizer by the names of the parameters."""
    if (directory / OPTIMIZER_NAME_BIN).is_file():
        # FSDP stores the states by the names of the parameters, an optimizer on its own by their numbers.
        return _load(directory / OPTIMIZER_NAME_BIN)["state"]
    optimizer = _optimizer(model, arguments)
    optimizer.load_state_dict(_load(directory / OPTIMIZER_NAME))
    return {name: optimizer.state[parameter] for name, parameter in _trained(model)}


def _trained(model):
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def write_training_state(state, directory, model, arguments):
    """Write a training state as Trainer does, with random states that start anew from the seed.

    Args:
        state: `algpt2.training.state.TrainingState`.
        directory: path of the checkpoint.
        model: `ALGPT2LMHeadModel`, whose parameters the moments belong to.
        arguments: `argparse.Namespace`, those of the run.
    """
    optimizer = _optimizer(model, arguments)
    scheduler = create_scheduler(
        optimizer, arguments.lr_schedule, arguments.warmup_steps, arguments.steps, arguments.decay_steps
    )
    _set_moments(optimizer, model, state)
    scheduler.load_state_dict(
        {**scheduler.state_dict(), "last_epoch": state.iterations - 1, "_step_count": state.iterations}
    )
    # Loaded one step back: the step from there also sets the learning rate of the optimizer.
    scheduler.step()
    torch.save(optimizer.state_dict(), directory / OPTIMIZER_NAME)
    torch.save(scheduler.state_dict(), directory / SCHEDULER_NAME)
    if state.loss_scale:
        scale, steps = state.loss_scale
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        torch.save({**scaler.state_dict(), "_growth_tracker": steps}, directory / SCALER_NAME)
    torch.save(_random_states(arguments.seed), directory / RANDOM_STATE_FILE)
    TrainerState(
        epoch=state.step / arguments.steps,
        global_step=state.step,
        max_steps=arguments.steps,
        num_train_epochs=1,
        logging_steps=arguments.logging_steps,
        eval_steps=arguments.eval_steps,
        save_steps=arguments.save_steps,
        train_batch_size=arguments.batch_size // arguments.gradient_accumulation,
        # When Trainer saves, it replaces this control by its own, and fails if there is none.
        stateful_callbacks=[TrainerControl()],
    ).save_to_json(directory / TRAINER_STATE_NAME)


def _optimizer(model, arguments):
    return create_optimizer(
        model, arguments.optimizer, arguments.learning_rate, arguments.weight_decay, optimizer_constants(arguments)
    )


@torch.no_grad()
def _set_moments(optimizer, model, state):
    # An optimizer makes its state in its first step, which moves nothing at a learning rate of 0.
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    for _, parameter in _trained(model):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in _trained(model):
        for moment, tensor in optimizer.state[parameter].items():
            value = state.iterations if moment == "step" else state.moments[f"{name}.{moment}"]
            tensor.copy_(torch.as_tensor(value))


def _random_states(seed):
    """Those that Trainer saves, as after `transformers.set_seed`."""
    states = {
        "python": random.Random(seed).getstate(),
        "numpy": np.random.RandomState(seed).get_state(),
        "cpu": torch.Generator().manual_seed(seed).get_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.Generator("cuda").manual_seed(seed).get_state()
    return states


def _load(path):
    check_archive(path)
    return torch.load(path, weights_only=True, map_location="cpu")
