"""One training run: its arguments, what they mean, and its directory with history and figure."""

import argparse
import dataclasses
import importlib.util
import json
import math
import os
import shutil
import time
from pathlib import Path

from algpt2.arguments import (
    HelpFormatter,
    add_dataset_arguments,
    natural_float,
    natural_int,
    positive_float,
    positive_int,
    seed,
)
from algpt2.checkpoint import read_config
from algpt2.comparison import ARGUMENTS_FILE, HISTORY_FILE, draw_perplexity, read_history
from algpt2.configuration import PRESETS, ALGPT2Config
from algpt2.corpus import PYTHON_DOCS, read_corpus
from algpt2.errors import DivergenceError, InputError
from algpt2.evaluation import perplexity
from algpt2.packing import Blocks, TokenizedText, TrainingOrder, pieces, tokenize
from algpt2.tokenization import load_tokenizer, train_tokenizer

FIGURE_FILE = "perplexity.png"
SCHEDULES = ("linear", "cosine", "constant")


def train_parser(program, description):
    """The command line of training, the same for both frameworks.

    Args:
        program: str. The name that usage messages show.
        description: str.

    Returns:
        `argparse.ArgumentParser`; a framework may add its own arguments.
    """
    parser = argparse.ArgumentParser(prog=program, description=description, formatter_class=HelpFormatter)
    model = parser.add_argument_group("model").add_mutually_exclusive_group()
    model.add_argument(
        "--preset", choices=PRESETS, default="algpt2-tiny", metavar="NAME", help=f"one of {', '.join(PRESETS)}"
    )
    model.add_argument("--config", metavar="FILE", help="a config.json, or a directory that holds one")

    data = parser.add_argument_group("data")
    add_dataset_arguments(data, f"{PYTHON_DOCS} (built in), a text file, or a quoted glob of text files")
    data.add_argument(
        "--validation",
        metavar="FILE",
        help="held-out text (default: a tenth of the topics of python-docs, or the last twentieth of the lines)",
    )
    data.add_argument("--tokenizer", metavar="DIR", help="a directory with tokenizer.json (default: train one)")
    data.add_argument(
        "--vocab-size", type=positive_int, metavar="N", help="size of the tokenizer to train (default: the model's)"
    )
    data.add_argument("--length", type=positive_int, metavar="N", help="tokens in a block (default: n_positions)")

    training = parser.add_argument_group("training")
    duration = training.add_mutually_exclusive_group()
    duration.add_argument("--epochs", type=positive_float, default=3.0, metavar="X", help="passes over the data")
    duration.add_argument("--max-steps", type=positive_int, metavar="N", help="optimizer steps, instead of epochs")
    training.add_argument(
        "--batch-size", type=positive_int, default=16, metavar="N", help="blocks in a step, over all devices"
    )
    training.add_argument("--learning-rate", type=positive_float, default=1e-3, metavar="X", help="its peak")
    training.add_argument(
        "--warmup-steps", type=natural_int, metavar="N", help="steps to reach the peak (default: a tenth of all)"
    )
    training.add_argument("--lr-schedule", choices=SCHEDULES, default="linear", help="the decay after warm-up")
    training.add_argument(
        "--weight-decay", type=natural_float, default=0.01, metavar="X", help="not on biases and layer norms"
    )
    training.add_argument("--max-grad-norm", type=positive_float, default=1.0, metavar="X", help="gradient clipping")
    training.add_argument("--seed", type=seed, default=0, metavar="N", help="of weights, dropout and order")

    output = parser.add_argument_group("output")
    output.add_argument("--output-dir", default="runs/algpt2", metavar="DIR", help="the run directory")
    output.add_argument("--overwrite", action="store_true", help="replace a run directory that is there already")
    output.add_argument("--logging-steps", type=positive_int, default=10, metavar="N", help="steps between losses")
    output.add_argument("--eval-steps", type=positive_int, default=100, metavar="N", help="steps between evaluations")
    output.add_argument("--save-steps", type=positive_int, metavar="N", help="steps between checkpoints (default: end)")
    output.add_argument(
        "--report-to", choices=("none", "wandb", "tensorboard"), default="none", help="log there as well"
    )
    return parser


@dataclasses.dataclass
class Run:
    """What a training run works on.

    Args:
        arguments: `argparse.Namespace`.
        directory: `Path`. The run directory.
        config: `ALGPT2Config`, with the vocabulary of the tokenizer.
        tokenizer: `transformers.PreTrainedTokenizerFast`.
        blocks: `Blocks` to train on.
        order: `TrainingOrder`, the block of each sample.
        validation: `TokenizedText`, held out.
        steps: int. The optimizer steps.
        warmup_steps: int.
    """

    arguments: argparse.Namespace
    directory: Path
    config: ALGPT2Config
    tokenizer: object
    blocks: Blocks
    order: TrainingOrder
    validation: TokenizedText
    steps: int
    warmup_steps: int

    @property
    def length(self):
        """int: the tokens of a block."""
        return self.blocks.length


def block_length(length, config):
    """The tokens of a block.

    Args:
        length: int, as `--length`; `None` means the configuration's `n_positions`.
        config: `ALGPT2Config`.

    Returns:
        int.

    Raises:
        InputError: if a block has nothing to predict, or does not fit the model.
    """
    length = length or config.n_positions
    if not 2 <= length <= config.n_positions:
        raise InputError(f"--length {length} must be at least 2 and at most n_positions, {config.n_positions}")
    return length


def prepare_run(arguments):
    """Read the data, train or load the tokenizer, and settle the configuration, before a framework is started.

    Args:
        arguments: `argparse.Namespace` of `train_parser`.

    Returns:
        `Run`; its directory holds the tokenizer and the arguments.

    Raises:
        InputError: for anything wrong in the arguments or the data.
    """
    directory = Path(arguments.output_dir)
    _require_free(directory, arguments.overwrite)
    _require_reporter(arguments.report_to)
    config = _configuration(arguments)
    length = block_length(arguments.length, config)
    corpus = read_corpus(arguments.dataset, arguments.validation)
    if arguments.tokenizer:
        tokenizer = load_tokenizer(arguments.tokenizer)
        if tokenizer.eos_token_id is None:
            raise InputError(f"{arguments.tokenizer}: the tokenizer has no eos_token to end documents with")
    else:
        print("training the tokenizer", flush=True)
        texts = [piece for document in corpus.train for piece in pieces(document)]
        tokenizer = train_tokenizer(texts, arguments.vocab_size or config.vocab_size)
    tokens = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    tokens |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = ALGPT2Config.from_dict(config.to_dict(), **tokens)

    training_blocks = Blocks(tokenize(corpus.train, tokenizer), length)
    validation = tokenize(corpus.validation, tokenizer)
    if len(validation.tokens) < 2:
        raise InputError("the validation text has no token to predict; give more text")
    steps = arguments.max_steps or max(1, round(arguments.epochs * len(training_blocks) / arguments.batch_size))
    warmup_steps = steps // 10 if arguments.warmup_steps is None else arguments.warmup_steps
    if arguments.batch_size > len(training_blocks):
        raise InputError(f"--batch-size {arguments.batch_size} is more than the text's {len(training_blocks)} blocks")
    if warmup_steps > steps:
        raise InputError(f"--warmup-steps {warmup_steps} is more than the {steps} steps of the run")

    _make_directory(directory, arguments)
    tokenizer.save_pretrained(directory)
    return Run(
        arguments,
        directory,
        config,
        tokenizer,
        training_blocks,
        TrainingOrder(len(training_blocks), steps * arguments.batch_size, arguments.seed),
        validation,
        steps,
        warmup_steps,
    )


class History:
    """The losses of a run, appended to history.jsonl as they come and drawn to perplexity.png at the end.

    Args:
        run: `Run`.
    """

    def __init__(self, run):
        self.run = run
        self.path = run.directory / HISTORY_FILE
        self.path.write_text("")
        self._tokens_per_step = run.arguments.batch_size * run.length
        self._last = (0, time.perf_counter())

    def log_train(self, step, loss, learning_rate):
        """Record the mean training loss since the last record, and the speed.

        Returns:
            dict of str to float: what was recorded.

        Raises:
            DivergenceError: if the loss is not finite.
        """
        now = time.perf_counter()
        steps, seconds = step - self._last[0], now - self._last[1]
        self._last = (step, now)
        values = {"train_loss": loss, "train_perplexity": perplexity(loss), "learning_rate": learning_rate}
        if steps:
            values["tokens_per_second"] = steps * self._tokens_per_step / seconds
        return self._append(step, loss, values)

    def log_evaluation(self, step, evaluation):
        """Record an `algpt2.evaluation.Evaluation`; the time it took does not count as training.

        Returns:
            dict of str to float: what was recorded.
        """
        values = {"eval_loss": evaluation.loss, "eval_perplexity": evaluation.perplexity}
        return self._append(step, evaluation.loss, values)

    def restart_clock(self, step):
        """Count the speed of training from this step and moment on."""
        self._last = (step, time.perf_counter())

    def _append(self, step, loss, values):
        if not math.isfinite(loss):
            raise DivergenceError(
                f"the loss is {loss} at step {step}; nothing was saved after the last checkpoint; "
                "try a lower --learning-rate, more --warmup-steps or a lower --max-grad-norm"
            )
        record = {"step": step, "tokens": step * self._tokens_per_step, **values}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"step {step}/{self.run.steps}  " + "  ".join(f"{k} {v:.4g}" for k, v in values.items()), flush=True)
        return values

    def draw(self):
        """Draw training and evaluation perplexity."""
        draw_perplexity({self.run.directory.name: read_history(self.path)}, self.run.directory / FIGURE_FILE)


def _configuration(arguments):
    if not arguments.config:
        return ALGPT2Config.from_preset(arguments.preset)
    config = read_config(arguments.config)
    known = {"model_type", *(field.name for field in dataclasses.fields(config))}
    unknown = sorted(name for name in vars(config) if name not in known and not name.startswith("_"))
    if unknown:
        print(f"{arguments.config}: not used: {', '.join(unknown)}", flush=True)
    return config


def _require_reporter(name):
    if name != "none" and importlib.util.find_spec(name) is None:
        raise InputError(f"--report-to {name}: not installed; pip install {name}")
    if name == "wandb":
        import wandb

        if os.environ.get("WANDB_MODE") not in ("offline", "disabled") and not wandb.login(prompt=False):
            raise InputError("--report-to wandb: not logged in; run `wandb login`, or set WANDB_MODE=offline")
        # Both frameworks report to the same project, unless the user names another.
        os.environ.setdefault("WANDB_PROJECT", "algpt2")


def _require_free(directory, overwrite):
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if directory.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise InputError(f"{directory}: is the current directory or holds it; give another --output-dir")
    if not (directory / ARGUMENTS_FILE).is_file():
        raise InputError(f"{directory}: is there already and is not a run directory; give another --output-dir")
    if not overwrite:
        raise InputError(f"{directory}: is there already; give another --output-dir, or --overwrite to replace it")


def _make_directory(directory, arguments):
    try:
        if directory.is_dir():
            shutil.rmtree(directory)
        directory.mkdir(parents=True)
        (directory / ARGUMENTS_FILE).write_text(json.dumps(vars(arguments), indent=2) + "\n")
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror})") from error
