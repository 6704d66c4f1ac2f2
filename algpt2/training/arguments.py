"""The command line of training, the same for both frameworks."""

from algpt2.cli import (
    Parser,
    add_device_argument,
    fraction,
    natural_float,
    natural_int,
    part,
    positive_float,
    positive_int,
    seed,
    share,
    temperature,
)
from algpt2.data.arguments import add_dataset_arguments
from algpt2.data.corpus import PYTHON_DOCS
from algpt2.evaluation import EVALUATION_BATCH
from algpt2.imports.frameworks import FRAMEWORKS
from algpt2.training.loss import DISTILL_WEIGHT, TEMPERATURE
from algpt2.training.optimization import HYPERPARAMETERS, OPTIMIZERS, SCHEDULES

TASKS = ("language-model", "classify")
# Of those optimizers that have moments.
BETAS = HYPERPARAMETERS["adamw"]["betas"]
EPSILONS = ", ".join(f"{HYPERPARAMETERS[name]['epsilon']:.0e} of {name}" for name in ("adamw", "lamb"))
PRECISIONS = ("fp32", "bf16", "fp16")
# As in algpt2.configuration, which imports a framework, and that the help need not wait for.
PRESETS = (
    *("gpt2", "algpt2", "algpt2-relaxed", "algpt2-no-dropout", "algpt2-factorized-256", "algpt2-factorized-512"),
    *("algpt2-medium", "algpt2-large", "algpt2-xl", "algpt2-tiny"),
)
PATTERNS = ("full", "none", "sequence:K", "cycle:K", "cycle_rev:K", "sandwich", "middle_cycle:P,K,C")
SHARING_HELP = f"share blocks by a pattern: {', '.join(PATTERNS)}; or name the block of every depth: 0,0,1,1"


def train_parser(framework, loop):
    """The command line of training.

    Args:
        framework: str, of `algpt2.imports.frameworks.FRAMEWORKS`, recorded with the arguments.
        loop: str. Whose loop trains.

    Returns:
        `algpt2.cli.Parser`; a framework may add its own arguments to its group `devices`, the last one.
    """
    parser = Parser(
        prog=f"python -m {FRAMEWORKS[framework].package}.train",
        description=f"Train ALGPT2 in {FRAMEWORKS[framework].title}, with {loop}.",
        usage="%(prog)s [arguments]",
    )
    # Text and teacher are recorded, so that a resumed run recognizes them, and the steps, for readers of the record.
    parser.set_defaults(framework=framework, text=None, teacher_checksum=None, steps=None)
    _add_run_arguments(parser.add_argument_group("run"))
    _add_task_arguments(parser.add_argument_group("task"))
    _add_model_arguments(parser.add_argument_group("model"))
    _add_data_arguments(parser.add_argument_group("data"))
    _add_training_arguments(parser.add_argument_group("training"))
    _add_teacher_arguments(parser.add_argument_group("teacher"))
    _add_optimizer_arguments(parser.add_argument_group("optimizer"))
    _add_evaluation_arguments(parser.add_argument_group("evaluation"))
    _add_logging_arguments(parser.add_argument_group("logs and checkpoints"))
    parser.devices = parser.add_argument_group("devices")
    add_device_argument(parser.devices, "train")
    return parser


def _add_task_arguments(group):
    group.add_argument(
        "--task",
        choices=TASKS,
        default=TASKS[0],
        help="train a language model, or fine-tune the one of --init-from to classify the texts of a .csv or .jsonl",
    )
    group.add_argument(
        "--label-column", metavar="NAME", help="take the class of a text from this column (default: label)"
    )


def _add_run_arguments(group):
    group.add_argument("--output-dir", default="runs/algpt2", metavar="DIR", help="write the run into this directory")
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace a run that is there already")
    existing.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="CHECKPOINT",
        help="go on with the run, with its arguments, from its newest checkpoint or from this one, as checkpoint-200; "
        "with more --max-steps or --epochs also after its end",
    )
    group.add_argument(
        "--arguments",
        metavar="FILE",
        help="take arguments from a JSON or YAML file, such as a run's arguments.json; those given here replace them",
    )


def _add_model_arguments(group):
    base = group.add_mutually_exclusive_group()
    base.add_argument(
        "--preset",
        choices=PRESETS,
        default="algpt2-tiny",
        metavar="NAME",
        help=f"start from a named configuration: {', '.join(PRESETS)}",
    )
    base.add_argument(
        "--config",
        metavar="FILE",
        help="start from a config.json, a directory that holds one, or the name of one of configs/",
    )
    base.add_argument(
        "--init-from", metavar="DIR", help="start from a checkpoint: its configuration, weights and tokenizer"
    )
    group.add_argument("--sharing", metavar="PATTERN", help=SHARING_HELP)
    group.add_argument(
        "--embedding-size", type=natural_int, metavar="N", help="factorize the embedding to this width; 0 does not"
    )
    group.add_argument("--depth", type=positive_int, metavar="N", help="apply N layers")
    group.add_argument(
        "--dropout", type=natural_float, metavar="X", help="drop this share of embeddings, attention and residuals"
    )
    group.add_argument(
        "--config-override",
        action="append",
        metavar="KEY=VALUE",
        help="set any field of the configuration; may be given several times",
    )


def _add_data_arguments(group):
    add_dataset_arguments(
        group, f"train on {PYTHON_DOCS} (built in), a file, folder or quoted glob of text, or a data set of the hub"
    )
    group.add_argument(
        "--validation",
        metavar="FILE",
        help="evaluate on this text (default: what the data set holds out, or else the last twentieth of its lines)",
    )
    group.add_argument(
        "--tokenizer", metavar="DIR", help="take the tokenizer of this directory (default: train one on the text)"
    )
    group.add_argument(
        "--vocab-size", type=positive_int, metavar="N", help="train a tokenizer of this size (default: the model's)"
    )
    group.add_argument(
        "--length", type=positive_int, metavar="N", help="cut the text into blocks of N tokens (default: n_positions)"
    )
    group.add_argument(
        "--packing",
        choices=("stream", "line"),
        default="stream",
        help="cut blocks from one stream of tokens, or make a padded block of each line",
    )
    group.add_argument("--max-train-blocks", type=positive_int, metavar="N", help="train on the first N blocks only")


def _add_training_arguments(group):
    duration = group.add_mutually_exclusive_group()
    duration.add_argument("--epochs", type=positive_float, default=3.0, metavar="X", help="go X times over the data")
    duration.add_argument(
        "--max-steps", type=positive_int, metavar="N", help="make N optimizer steps, instead of --epochs"
    )
    group.add_argument(
        "--batch-size", type=positive_int, default=16, metavar="N", help="take N blocks a step, over all devices"
    )
    group.add_argument(
        "--gradient-accumulation",
        type=positive_int,
        default=1,
        metavar="N",
        help="compute a step's batch in N parts, to save memory",
    )
    group.add_argument(
        "--gradient-checkpointing",
        action="store_true",
        help="compute blocks twice, to save memory",
    )
    group.add_argument("--precision", choices=PRECISIONS, default="fp32", help="compute in this type of numbers")
    group.add_argument(
        "--quantize",
        choices=("q4",),
        help="train for the weights in 4 bits of convert export --quantize q4, and end with them",
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="compile the step (torch.compile or XLA): slow to start, and faster on some devices",
    )
    group.add_argument(
        "--random-depth",
        type=positive_int,
        metavar="MIN",
        help="draw the depth of each step, from MIN to that of the model, whose schedule has to follow a pattern",
    )
    group.add_argument("--sop", action="store_true", help="learn the order of a block's halves too, as ALBERT does")
    group.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="draw weights, dropout and order from this seed"
    )


def _add_teacher_arguments(group):
    group.add_argument(
        "--teacher",
        metavar="DIR",
        help="learn what this checkpoint, of any system that convert reads, says of every token, beside the text",
    )
    group.add_argument(
        "--distill-weight",
        type=part,
        metavar="X",
        help=f"give the teacher this part of the loss (default: {DISTILL_WEIGHT})",
    )
    group.add_argument(
        "--temperature",
        type=temperature,
        metavar="X",
        help=f"divide the logits of both by this (default: {TEMPERATURE:g})",
    )
    group.add_argument(
        "--teacher-precision",
        choices=PRECISIONS[:2],
        help="compute the teacher in this type of numbers (default: as --precision)",
    )


def _add_optimizer_arguments(group):
    group.add_argument(
        "--optimizer", choices=OPTIMIZERS, default="adamw", help="step by this method (docs/optimization.md)"
    )
    group.add_argument(
        "--learning-rate",
        type=positive_float,
        metavar="X",
        help="reach this learning rate at its peak (default: 1 / n_embd, 8e-3 at most, twice that with a "
        "residual_multiplier below 1; with --init-from 1e-3)",
    )
    warmup = group.add_mutually_exclusive_group()
    warmup.add_argument(
        "--warmup-steps", type=natural_int, metavar="N", help="reach the peak in N steps (default: a tenth of all)"
    )
    warmup.add_argument(
        "--warmup-ratio", type=share, metavar="X", help="reach the peak in this share of all steps, rounded up"
    )
    group.add_argument(
        "--lr-schedule", choices=SCHEDULES, default="linear", help="how the learning rate falls after the warm-up"
    )
    group.add_argument(
        "--decay-steps",
        type=positive_int,
        metavar="N",
        help="decay in the last N steps of wsd (default: a tenth of all)",
    )
    group.add_argument(
        "--weight-decay",
        type=natural_float,
        default=0.01,
        metavar="X",
        help="shrink weights by this rate, but not biases and layer norms",
    )
    group.add_argument(
        "--adam-beta1",
        type=fraction,
        metavar="X",
        help=f"keep this share of the first moment of adamw or lamb (default: {BETAS[0]})",
    )
    group.add_argument(
        "--adam-beta2", type=fraction, metavar="X", help=f"keep this share of their second moment (default: {BETAS[1]})"
    )
    group.add_argument(
        "--adam-epsilon",
        type=positive_float,
        metavar="X",
        help=f"add this to the root of their second moment (default: {EPSILONS})",
    )
    group.add_argument(
        "--max-grad-norm", type=positive_float, default=1.0, metavar="X", help="clip the norm of all gradients to this"
    )


def _add_evaluation_arguments(group):
    group.add_argument(
        "--eval-steps", type=positive_int, default=100, metavar="N", help="evaluate after every N steps, and the last"
    )
    group.add_argument("--eval-on-start", action="store_true", help="evaluate before the first step, too")
    group.add_argument(
        "--eval-protocol",
        choices=("stream", "line"),
        default="stream",
        help="cut the held-out text from one stream of tokens, or line by line",
    )
    group.add_argument(
        "--eval-batch-size",
        type=positive_int,
        metavar="N",
        help=f"evaluate N blocks at once (default: as --batch-size, but {EVALUATION_BATCH} at most)",
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


def _add_logging_arguments(group):
    group.add_argument(
        "--logging-steps", type=positive_int, default=10, metavar="N", help="print the losses of every N steps"
    )
    group.add_argument(
        "--report-to", choices=("none", "wandb", "tensorboard"), default="none", help="send losses there as well"
    )
    group.add_argument("--run-name", metavar="NAME", help="the name of the run in wandb (default: wandb finds one)")
    group.add_argument(
        "--save-steps", type=positive_int, metavar="N", help="write a checkpoint after every N steps (default: none)"
    )
    group.add_argument(
        "--save-total-limit",
        type=positive_int,
        metavar="N",
        help="keep the newest N checkpoints and the best (default: all)",
    )
    group.add_argument("--push-to-hub", metavar="REPO", help="upload the finished run to this hub repository")
