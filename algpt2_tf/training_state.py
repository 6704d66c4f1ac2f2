"""The training state of a Keras model and its optimizer in and out of a checkpoint, by canonical names."""

import numpy as np
from safetensors.numpy import load_file, save_file

from algpt2.training.run_directory import damaged_checkpoint
from algpt2.training.state import TrainingState, check_training_state
from algpt2_tf.optimization import SGD, Adafactor, LossScaleOptimizer
from algpt2_tf.weights import canonical_variables

TRAINING_STATE_FILE = "training_state.safetensors"
MOMENT, RANDOM_STATE = "moment.", "random_state."


def save_training_state(model, optimizer, step, directory):
    """Write what a model and its optimizer know besides the weights: moments, iterations, random states.

    The file names everything: `step`, `iterations`, `moment.` with the name and in the layout that
    `algpt2.training.state.moment_shapes` gives, `random_state.` with the layer, and with fp16 `loss_scale` and
    `loss_scale_steps`.

    Args:
        model: `TFALGPT2LMHeadModel`.
        optimizer: `keras.optimizers.Optimizer` of `algpt2_tf.optimization`, built.
        step: int. The steps that the run has made.
        directory: path.
    """
    moments = {
        name: np.asarray(variable).T if transposed else np.asarray(variable)
        for name, (variable, transposed) in moment_variables(model, optimizer).items()
    }
    loss_scale = None
    if isinstance(optimizer, LossScaleOptimizer):
        loss_scale = (np.asarray(optimizer.dynamic_scale).item(), np.asarray(optimizer.step_counter).item())
    iterations = np.asarray(optimizer.iterations).item()
    write_training_state(TrainingState(step, iterations, moments, loss_scale), model, directory)


def write_training_state(state, model, directory):
    """Write a training state, and the random states of a model beside it.

    Args:
        state: `algpt2.training.state.TrainingState`.
        model: `TFALGPT2LMHeadModel`.
        directory: path.
    """
    tensors = {"step": np.asarray(state.step), "iterations": np.asarray(state.iterations)}
    if state.loss_scale:
        scale, steps = state.loss_scale
        tensors |= {"loss_scale": np.asarray(scale, "float32"), "loss_scale_steps": np.asarray(steps)}
    tensors |= {MOMENT + name: np.ascontiguousarray(array) for name, array in state.moments.items()}
    tensors |= {RANDOM_STATE + name: np.asarray(variable) for name, variable in random_state_variables(model).items()}
    save_file(tensors, directory / TRAINING_STATE_FILE)


def load_training_state(model, optimizer, directory):
    """Set what `save_training_state` wrote.

    Args:
        model, optimizer, directory: as in `save_training_state`.

    Raises:
        InputError: if the file is missing, damaged or of another optimizer.
    """
    moments = moment_variables(model, optimizer)
    shapes = {
        name: tuple(held.shape)[::-1] if transposed else tuple(held.shape)
        for name, (held, transposed) in moments.items()
    }
    state, random_states = read_training_state(directory, shapes)
    try:
        for name, (variable, transposed) in moments.items():
            variable.assign(state.moments[name].T if transposed else state.moments[name])
        for name, variable in random_state_variables(model).items():
            variable.assign(random_states[name])
        if isinstance(optimizer, LossScaleOptimizer):
            scale, steps = state.loss_scale
            optimizer.dynamic_scale.assign(scale)
            optimizer.step_counter.assign(steps)
        optimizer.iterations.assign(state.iterations)
    except Exception as error:  # TensorFlow raises errors of many kinds
        raise damaged_checkpoint(directory, error) from error


def read_training_state(directory, shapes):
    """What `save_training_state` wrote.

    Args:
        directory: path of the checkpoint.
        shapes: dict of str to tuple of int, of the moments that it should hold, as `moment_shapes` gives them.

    Returns:
        tuple of `algpt2.training.state.TrainingState` and the random states, dict of str to int64 array (2,).

    Raises:
        InputError: if the file is missing, damaged or of another optimizer.
    """
    try:
        tensors = load_file(directory / TRAINING_STATE_FILE)
        step, iterations = int(tensors.pop("step")), int(tensors.pop("iterations"))
        loss_scale = None
        if "loss_scale" in tensors:
            loss_scale = (float(tensors.pop("loss_scale")), int(tensors.pop("loss_scale_steps")))
    except Exception as error:  # safetensors raises errors of many kinds
        raise damaged_checkpoint(directory, error) from error
    moments, random_states = (
        {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        for prefix in (MOMENT, RANDOM_STATE)
    )
    # Before version 0.2 project_out stood beside the transformer.
    moments = {
        f"transformer.{name}" if name.startswith("project_out.") else name: moment for name, moment in moments.items()
    }
    state = TrainingState(step, iterations, moments, loss_scale)
    check_training_state(state, shapes, directory)
    return state, random_states


def moment_variables(model, optimizer):
    """The variable behind every moment, and whether it holds the moment transposed.

    Args:
        model, optimizer: as in `save_training_state`.

    Returns:
        dict of str to tuple of (variable, bool), named as in `algpt2.training.state.moment_shapes`.
    """
    inner = optimizer.inner_optimizer if isinstance(optimizer, LossScaleOptimizer) else optimizer
    trained = {id(variable) for variable in model.trainable_variables}
    return {
        f"{name}.{moment}": (held, transposed)
        for name, (variable, transposed) in canonical_variables(model).items()
        if id(variable) in trained
        for moment, held in _moments_of_variable(inner, variable, transposed).items()
    }


def _moments_of_variable(optimizer, variable, transposed):
    index = optimizer._get_variable_index(variable)
    if isinstance(optimizer, SGD):
        return {"momentum_buffer": optimizer.momentums[index]}
    if not isinstance(optimizer, Adafactor):
        return {"exp_avg": optimizer._momentums[index], "exp_avg_sq": optimizer._velocities[index]}
    moments = optimizer._moments[index]
    if len(moments) == 1:
        return {"variance": moments[0]}
    # The rows of a variable are the columns of the weight that it holds transposed.
    names = ("col_var", "row_var") if transposed else ("row_var", "col_var")
    return dict(zip(names, moments, strict=True))


def random_state_variables(model):
    """The random state of every dropout that drops something, by its layer.

    Args:
        model: `TFALGPT2LMHeadModel`.

    Returns:
        dict of str to variable, int64 (2,).
    """
    backbone = model.backbone
    layers = {"embeddings_dropout": backbone.embeddings_dropout}
    for block in backbone.transformer_layers:
        layers |= {f"{block.name}.{layer.name}": layer for layer in (block.attn_dropout, block.resid_dropout)}
    return {name: layer.seed_generator.state for name, layer in layers.items() if layer.rate > 0}
