"""The arguments of training: those of the command line, of a file, and of the record of a run that goes on."""

import argparse
import codecs
import json
from pathlib import Path

import yaml

from algpt2.cli import did_you_mean, flag
from algpt2.errors import InputError
from algpt2.files.reading import parse_json, read_bytes, read_json
from algpt2.imports.frameworks import FRAMEWORKS
from algpt2.training.optimization import HYPERPARAMETERS
from algpt2.training.run_directory import ARGUMENTS_FILE

# What may differ when a run is resumed, since the weights do not depend on it.
CHANGEABLE = {
    *("resume", "overwrite", "logging_steps", "eval_steps", "save_steps", "save_total_limit", "report_to"),
    *("device", "strategy", "push_to_hub", "load_best", "early_stopping_patience"),
    *("eval_batch_size", "eval_on_start", "run_name"),
}
# With another length a run goes on from where it is, also after its end.
LENGTHS = {"max_steps", "epochs"}
# What a record of a run has beside the arguments, and of these what another run does not take from it.
OF_A_RECORD = {"framework", "text", "steps"}
OF_ONE_RUN = {*OF_A_RECORD, "teacher_checksum", "resume", "overwrite"}
NOT_OF_A_FILE = {"arguments", "resume", "help"}
# Arguments of one framework alone, which choose devices; in a file the other framework ignores them.
OF_ONE_FRAMEWORK = {"fsdp", "strategy"}


def parse_train_arguments(parser, argv=None):
    """The arguments of a run; those of a resumed run are the recorded ones.

    Args:
        parser: `argparse.ArgumentParser` of `algpt2.training.arguments.train_parser`.
        argv: list of str; `None` means the command line.

    Returns:
        `argparse.Namespace`; `resume` is `False`, `True` or the checkpoint to go on from.

    Raises:
        InputError: if there is no run to resume, or the arguments given differ from those of it.
    """
    arguments = parser.parse_args(argv)
    file = arguments.arguments
    if arguments.resume is False:
        if file is not None:
            arguments = argparse.Namespace(**{**vars(arguments), **_from_file(parser, file, given(parser, argv))})
        del arguments.arguments
        _require_used(arguments)
        return arguments
    if file is not None:
        raise InputError("--resume goes on with the arguments of the run; leave out --arguments")
    if not arguments.resume:
        raise InputError("--resume is followed by an empty name; give that of a checkpoint, or none")
    directory = Path(arguments.output_dir)
    if not directory.exists():
        raise InputError(f"{directory}: no such directory, and no run to resume; leave out --resume to start one")
    recorded = vars(read_arguments(directory, parser))
    changes = given(parser, argv)
    for key in sorted(changes.keys() - CHANGEABLE - LENGTHS - {"output_dir"}):
        if changes[key] != recorded[key]:
            raise InputError(
                f"{flag(key)} is {changes[key]!r}, but the run to resume has {recorded[key]!r}; "
                "leave it out, or start a new run"
            )
    if "epochs" in changes:
        recorded["max_steps"] = None
    return argparse.Namespace(**{**recorded, **changes})


def given(parser, argv=None):
    """What a command line gives, without defaults.

    Args:
        parser: `argparse.ArgumentParser`.
        argv: list of str; `None` means the command line of the process.

    Returns:
        dict of str to value.

    Example:
        >>> parser = argparse.ArgumentParser()
        >>> _ = parser.add_argument("--seed", type=int, default=0), parser.add_argument("--depth", default=2)
        >>> given(parser, ["--seed", "0"])
        {'seed': 0}
    """
    # argparse leaves alone what a namespace already has, so that what stays None was not given.
    unset = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args(argv))))
    return {key: value for key, value in vars(parser.parse_args(argv, unset)).items() if value is not None}


def settle_text(arguments, fingerprint):
    """Record what text a run has.

    Args:
        arguments: `argparse.Namespace`; its `text` is set.
        fingerprint: str, of the text that there is now.

    Raises:
        InputError: if a run that goes on began with another text.
    """
    if arguments.text not in (None, fingerprint):
        raise InputError("the text of --dataset or --validation is not what it was when the run began; start a new run")
    arguments.text = fingerprint


def _from_file(parser, path, on_top):
    """What a file of arguments gives, and what the command line gives on top, by name."""
    # As on a command line, so that it is checked as there. Messages name the file.
    program, parser.prog = parser.prog, f"{parser.prog}: {path}"
    try:
        values = given(parser, _as_command_line(_read_values(path), parser, path))
    finally:
        parser.prog = program
    for group in parser._mutually_exclusive_groups:
        names = {action.dest for action in group._group_actions}
        if names & on_top.keys():
            values = {name: value for name, value in values.items() if name not in names}
    return {**values, **on_top}


def _read_values(path):
    content = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    if str(path).endswith(".json"):
        values = parse_json(content, path)
        names = json.loads(content, object_pairs_hook=lambda pairs: [name for name, _ in pairs])
    else:
        try:
            values = yaml.safe_load(content)
            names = [key.value for key, _ in yaml.compose(content).value] if isinstance(values, dict) else []
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise InputError(f"{path}: not readable as YAML ({error})") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected arguments and their values, such as max-steps: 500")
    names = [str(name).replace("-", "_") for name in names]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: {name} is given twice; leave one of them out")
    values = {str(name).replace("-", "_"): value for name, value in values.items()}
    if OF_A_RECORD <= values.keys():
        values = _of_another_run(values)
    return values


def _of_another_run(record):
    """What another run takes from the record of a run."""
    values = {name: value for name, value in record.items() if name not in OF_ONE_RUN}
    steps = record["steps"]
    by_default = isinstance(steps, int) and values.get("warmup_steps") == steps // 10
    if by_default or values.get("warmup_ratio") is not None:
        # The record says the steps of a warm-up that were not given.
        values.pop("warmup_steps", None)
    return values


def _as_command_line(values, parser, path):
    actions = {action.dest: action for action in parser._actions if action.dest not in NOT_OF_A_FILE}
    argv = []
    for name, value in values.items():
        if value is None or (name in OF_ONE_FRAMEWORK and name not in actions):
            continue
        if name in NOT_OF_A_FILE:
            raise InputError(f"{path}: {name} is for the command line; leave it out")
        if name not in actions:
            raise InputError(f"{path}: unknown argument {name!r}{did_you_mean(name, actions)}")
        action = actions[name]
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise InputError(f"{path}: {name} is {value!r}; expected true or false")
            argv += [flag(name)] * value
            continue
        several = isinstance(action, argparse._AppendAction) and isinstance(value, list)
        for one in value if several else [value]:
            if isinstance(one, dict | list | bool):
                raise InputError(f"{path}: {name} is {one!r}; expected one value, a number or a text in quotes")
            if type(one) is not type(action.default) or one != action.default:
                argv.append(f"{flag(name)}={one}")
    return argv


def _require_used(arguments):
    """Raise an InputError for an argument that would change nothing beside another."""
    overridden = {override.partition("=")[0] for override in arguments.config_override or ()}
    dropouts = [name for name in overridden if name.endswith("_pdrop")]
    depth = {"n_layer", "num_hidden_layers", "layer_schedule"}
    has_adam = "betas" in HYPERPARAMETERS[arguments.optimizer]
    saves = arguments.save_steps or arguments.load_best
    # Arguments that are without effect, and why.
    for names, is_unused, why in (
        (("vocab_size",), arguments.tokenizer, "the tokenizer is that of --tokenizer"),
        (("vocab_size",), arguments.init_from, "the tokenizer is that of --init-from"),
        (("decay_steps",), arguments.lr_schedule != "wsd", "it is for --lr-schedule wsd"),
        (("adam_beta1", "adam_beta2", "adam_epsilon"), not has_adam, f"{arguments.optimizer} has no such constant"),
        (("save_total_limit",), not saves, "no checkpoint is kept without --save-steps"),
        (("vocab_size",), arguments.teacher, "the tokenizer is that of --teacher"),
        (("distill_weight", "temperature", "teacher_precision"), not arguments.teacher, "it is for --teacher"),
        (("label_column",), arguments.task != "classify", "it is for --task classify"),
        (("run_name",), arguments.report_to != "wandb", "it is for --report-to wandb"),
        (("depth", "sharing"), depth & overridden, "--config-override sets the depth"),
        (("embedding_size",), "embedding_size" in overridden, "--config-override sets embedding_size"),
        (("dropout",), dropouts, "--config-override sets a dropout"),
        (
            ("teacher",),
            "vocab_size" in overridden,
            "the tokens are the teacher's, and --config-override sets vocab_size",
        ),
    ):
        for name in names:
            if is_unused and getattr(arguments, name) is not None:
                raise InputError(f"{flag(name)} would have no effect: {why}; leave one of them out")


def read_arguments(directory, parser):
    """The recorded arguments of a run.

    Args:
        directory: path of the run.
        parser: `argparse.ArgumentParser` of `algpt2.training.arguments.train_parser`, of the framework that the run
            was made in.

    Returns:
        `argparse.Namespace`.

    Raises:
        InputError: if there is no record, it cannot be read, or the run was made in the other framework.
    """
    record = Path(directory) / ARGUMENTS_FILE
    if not record.is_file():
        raise InputError(f"{record}: no such file; {directory} is not the directory of a run")
    expected = parser.parse_args([])
    del expected.arguments
    recorded = read_json(record)
    framework = recorded.get("framework")
    if not isinstance(framework, str) or framework not in FRAMEWORKS:
        raise InputError(f"{record}: framework is {framework!r}; expected one of {', '.join(FRAMEWORKS)}")
    if framework == expected.framework:
        # An argument that came later is as by default.
        arguments = {key: recorded.get(key, value) for key, value in vars(expected).items()}
        for action in parser._actions:
            if action.dest in arguments and not _is_possible(action, arguments[action.dest]):
                raise InputError(f"{record}: {action.dest} is {arguments[action.dest]!r}, which the argument cannot be")
        for key, kind in {"text": str, "teacher_checksum": str, "steps": int}.items():
            if type(arguments[key]) not in (kind, type(None)):
                raise InputError(f"{record}: {key} is {arguments[key]!r}; expected {kind.__name__}")
        return argparse.Namespace(**arguments)
    found = FRAMEWORKS[framework]
    raise InputError(
        f"{record}: the run was made in {found.title}; resume it there, or carry it over: "
        f"python -m convert {found.carry} {directory} --training-state --output NEW"
    )


def _is_possible(action, value):
    """Whether a recorded value is one that an argument of the command line gives."""
    if value is None:
        return action.default is None
    if isinstance(value, bool) or action.nargs == 0:
        return any(value is one for one in (action.default, action.const))
    if isinstance(action, argparse._AppendAction):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    try:
        possible = isinstance(value, str) if action.type is None else action.type(str(value)) == value
    except ValueError:
        return False
    return possible and (action.choices is None or value in action.choices)
