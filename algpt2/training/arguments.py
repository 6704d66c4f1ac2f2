"""The arguments of training: what can be given, and what a resumed run takes from its record."""

import argparse
from pathlib import Path

from algpt2.cli import FRAMEWORKS, HelpFormatter, natural_float, natural_int, positive_float, positive_int, seed
from algpt2.data.corpus import PYTHON_DOCS, add_dataset_arguments
from algpt2.errors import InputError
from algpt2.reading import read_json
from algpt2.training.optimization import OPTIMIZERS, SCHEDULES
from algpt2.training.run_directory import ARGUMENTS_FILE

TASKS = ("language-model", "classify")
PRECISIONS = ("fp32", "bf16", "fp16")
# As in algpt2.configuration, which imports a framework, and that the help need not wait for.
PRESETS = (
    *("gpt2", "algpt2", "algpt2-no-dropout", "algpt2-factorized-256", "algpt2-factorized-512"),
    *("algpt2-medium", "algpt2-large", "algpt2-xl", "algpt2-tiny"),
)
PATTERNS = ("full", "none", "sequence:K", "cycle:K", "cycle_rev:K", "sandwich")
# What may differ when a run is resumed, since the weights do not depend on it.
CHANGEABLE = {
    *("resume", "overwrite", "logging_steps", "eval_steps", "save_steps", "save_total_limit", "report_to"),
    *("device", "strategy", "push_to_hub", "load_best", "early_stopping_patience"),
}
# With another length a run goes on from where it is, also after its end.
LENGTHS = {"max_steps", "epochs"}


def train_parser(framework, loop):
    """The command line of training, the same for both frameworks.

    Args:
        framework: str, of `algpt2.cli.FRAMEWORKS`, recorded with the arguments.
        loop: str. Whose loop trains.

    Returns:
        `argparse.ArgumentParser`; a framework may add its own arguments.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {FRAMEWORKS[framework].package}.train",
        description=f"Train ALGPT2 in {FRAMEWORKS[framework].title}, with {loop}.",
        formatter_class=HelpFormatter,
    )
    # The text is recorded, so that a resumed run recognizes it, and so are the steps, for readers of the record.
    parser.set_defaults(framework=framework, text=None, steps=None)
    _add_task_arguments(parser.add_argument_group("task"))
    _add_model_arguments(parser.add_argument_group("model"))
    _add_data_arguments(parser.add_argument_group("data"))
    _add_training_arguments(parser.add_argument_group("training"))
    _add_output_arguments(parser.add_argument_group("output"))
    return parser


def _add_task_arguments(group):
    group.add_argument(
        "--task",
        choices=TASKS,
        default=TASKS[0],
        help="train a language model, or fine-tune the one of --init-from to class the texts of a .csv or .jsonl",
    )
    group.add_argument("--label-column", default="label", metavar="NAME", help="the column of the class, to classify")


def _add_model_arguments(group):
    base = group.add_mutually_exclusive_group()
    base.add_argument(
        "--preset", choices=PRESETS, default="algpt2-tiny", metavar="NAME", help=f"one of {', '.join(PRESETS)}"
    )
    base.add_argument(
        "--config", metavar="FILE", help="a config.json, a directory that holds one, or the name of one of configs/"
    )
    base.add_argument("--init-from", metavar="DIR", help="a checkpoint to go on from, with its tokenizer")
    group.add_argument(
        "--sharing", metavar="PATTERN", help=f"one of {', '.join(PATTERNS)}, or the block of every depth: 0,0,1,1"
    )
    group.add_argument("--embedding-size", type=natural_int, metavar="N", help="embedding width, 0: not factorized")
    group.add_argument("--depth", type=positive_int, metavar="N", help="layers")
    group.add_argument("--dropout", type=natural_float, metavar="X", help="of embeddings, attention and residuals")
    group.add_argument(
        "--config-override", action="append", metavar="KEY=VALUE", help="any field of the configuration; repeatable"
    )


def _add_data_arguments(group):
    add_dataset_arguments(
        group, f"{PYTHON_DOCS} (built in), a file, folder or quoted glob of text, or a data set of the hub"
    )
    group.add_argument(
        "--validation",
        metavar="FILE",
        help="held-out text (default: the data set's own, or else the last twentieth of the lines)",
    )
    group.add_argument("--tokenizer", metavar="DIR", help="a directory with tokenizer.json (default: train one)")
    group.add_argument(
        "--vocab-size", type=positive_int, metavar="N", help="size of the tokenizer to train (default: the model's)"
    )
    group.add_argument("--length", type=positive_int, metavar="N", help="tokens in a block (default: n_positions)")
    group.add_argument(
        "--packing",
        choices=("stream", "line"),
        default="stream",
        help="blocks cut from one stream of tokens, or one line a block, padded",
    )
    group.add_argument("--max-train-blocks", type=positive_int, metavar="N", help="train on the first N blocks only")
    group.add_argument(
        "--eval-protocol", choices=("stream", "line"), default="stream", help="how the held-out text is cut"
    )


def _add_training_arguments(group):
    duration = group.add_mutually_exclusive_group()
    duration.add_argument("--epochs", type=positive_float, default=3.0, metavar="X", help="passes over the data")
    duration.add_argument("--max-steps", type=positive_int, metavar="N", help="optimizer steps, instead of epochs")
    group.add_argument(
        "--batch-size", type=positive_int, default=16, metavar="N", help="blocks in a step, over all devices"
    )
    group.add_argument(
        "--gradient-accumulation",
        type=positive_int,
        default=1,
        metavar="N",
        help="parts that a step's batch is computed in, to save memory",
    )
    group.add_argument("--gradient-checkpointing", action="store_true", help="recompute the blocks, to save memory")
    group.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the computations")
    group.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw", help="see docs/optimization.md")
    group.add_argument("--learning-rate", type=positive_float, default=1e-3, metavar="X", help="its peak")
    group.add_argument(
        "--warmup-steps", type=natural_int, metavar="N", help="steps to reach the peak (default: a tenth of all)"
    )
    group.add_argument("--lr-schedule", choices=SCHEDULES, default="linear", help="the decay after warm-up")
    group.add_argument(
        "--decay-steps", type=positive_int, metavar="N", help="the final decay of wsd (default: a tenth of all)"
    )
    group.add_argument(
        "--weight-decay", type=natural_float, default=0.01, metavar="X", help="not on biases and layer norms"
    )
    group.add_argument("--max-grad-norm", type=positive_float, default=1.0, metavar="X", help="gradient clipping")
    group.add_argument("--sop", action="store_true", help="learn the order of a block's halves too, as ALBERT")
    group.add_argument("--seed", type=seed, default=0, metavar="N", help="of weights, dropout and order")
    group.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="auto: GPUs if there are")


def _add_output_arguments(group):
    group.add_argument("--output-dir", default="runs/algpt2", metavar="DIR", help="the run directory")
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace a run directory that is there already")
    existing.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="CHECKPOINT",
        help="go on with the run, with its arguments, from its newest checkpoint or from this one, as checkpoint-200; "
        "with more --max-steps or --epochs also after its end",
    )
    group.add_argument("--logging-steps", type=positive_int, default=10, metavar="N", help="steps between losses")
    group.add_argument("--eval-steps", type=positive_int, default=100, metavar="N", help="steps between evaluations")
    group.add_argument("--save-steps", type=positive_int, metavar="N", help="steps between checkpoints (default: none)")
    group.add_argument(
        "--save-total-limit", type=positive_int, metavar="N", help="checkpoints to keep, and the best (default: all)"
    )
    group.add_argument(
        "--load-best",
        action="store_true",
        help="end with the weights of the best checkpoint (without --save-steps: as --eval-steps, and one kept)",
    )
    group.add_argument(
        "--early-stopping-patience",
        type=positive_int,
        metavar="N",
        help="end after N evaluations without a lower loss (default: never)",
    )
    group.add_argument(
        "--report-to", choices=("none", "wandb", "tensorboard"), default="none", help="log there as well"
    )
    group.add_argument("--push-to-hub", metavar="REPO", help="upload the finished run to this hub repository")


def parse_train_arguments(parser, argv=None):
    """The arguments of a run; those of a resumed run are the recorded ones.

    Args:
        parser: `argparse.ArgumentParser` of `train_parser`.
        argv: list of str; `None` means the command line.

    Returns:
        `argparse.Namespace`; `resume` is `False`, `True` or the checkpoint to go on from.

    Raises:
        InputError: if there is no run to resume, or the arguments given differ from those of it.
    """
    arguments = parser.parse_args(argv)
    if arguments.resume is False:
        return arguments
    if not arguments.resume:
        raise InputError("--resume is followed by an empty name; give that of a checkpoint, or none")
    directory = Path(arguments.output_dir)
    if not directory.exists():
        raise InputError(f"{directory}: no such directory, and no run to resume; leave out --resume to start one")
    recorded = vars(read_arguments(directory, parser))
    # argparse leaves alone what a namespace already has, so that what stays None was not given.
    unset = argparse.Namespace(**dict.fromkeys(vars(arguments)))
    given = {key: value for key, value in vars(parser.parse_args(argv, unset)).items() if value is not None}
    for key in sorted(given.keys() - CHANGEABLE - LENGTHS - {"output_dir"}):
        if given[key] != recorded[key]:
            raise InputError(
                f"--{key.replace('_', '-')} is {given[key]!r}, but the run to resume has {recorded[key]!r}; "
                "leave it out, or start a new run"
            )
    if "epochs" in given:
        recorded["max_steps"] = None
    return argparse.Namespace(**{**recorded, **given})


def read_arguments(directory, parser):
    """The recorded arguments of a run.

    Args:
        directory: path of the run.
        parser: `argparse.ArgumentParser` of `train_parser`, of the framework that the run was made in.

    Returns:
        `argparse.Namespace`.

    Raises:
        InputError: if there is no record, it cannot be read, or the run was made in the other framework.
    """
    record = Path(directory) / ARGUMENTS_FILE
    if not record.is_file():
        raise InputError(f"{record}: no such file; {directory} is not the directory of a run")
    expected = parser.parse_args([])
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
        for key, kind in {"text": str, "steps": int}.items():
            if type(arguments[key]) not in (kind, type(None)):
                raise InputError(f"{record}: {key} is {arguments[key]!r}; expected {kind.__name__}")
        return argparse.Namespace(**arguments)
    found = FRAMEWORKS[framework]
    raise InputError(
        f"{record}: the run was made in {found.title}; resume it there, or carry it over: "
        f"python -m convert {found.carry} --training-state"
    )


def _is_possible(action, value):
    """Whether a recorded value is one that an argument of the command line gives."""
    if value is None:
        return action.default is None
    if isinstance(value, bool):
        return any(value is one for one in (action.default, action.const))
    if isinstance(action, argparse._AppendAction):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    try:
        possible = isinstance(value, str) if action.type is None else action.type(str(value)) == value
    except ValueError:
        return False
    return possible and (action.choices is None or value in action.choices)
