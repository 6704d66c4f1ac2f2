"""One training run: its data, its configuration and its directory."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from algpt2.checkpoints.checkpoint import open_checkpoint
from algpt2.checkpoints.formats import find_weights
from algpt2.checkpoints.weights import parameter_count
from algpt2.configuration import ALGPT2Config
from algpt2.data.packing import Blocks, TrainingOrder
from algpt2.data.tokenized_text import TokenizedText
from algpt2.errors import InputError
from algpt2.evaluation import EVALUATION_BATCH
from algpt2.evaluation.perplexity import evaluate
from algpt2.hub import upload
from algpt2.training.figure import draw_perplexity
from algpt2.training.history import evaluation_losses, read_history, stopped_improving
from algpt2.training.loss import IGNORED
from algpt2.training.model_card import write_model_card
from algpt2.training.random_depth import RandomDepth
from algpt2.training.run_directory import (
    FIGURE_FILE,
    HISTORY_FILE,
    Checkpoints,
    damaged_checkpoint,
    record_arguments,
    require_undamaged,
)

# The ratio of the last loss to the best above which the run says so.
NOTABLY = 1.01


@dataclass
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
        decay_steps: int. The length of the final decay of the schedule `wsd`.
        is_first: bool. Whether this process writes files.
        initial_weights: dict of str to numpy array, the canonical weights of `--init-from`; `None` without.
        teacher: tuple of the `ALGPT2Config` and the canonical weights of `--teacher`; `None` without.
        goes_on: bool. Whether it goes on though it may have ended: to more steps, or from an earlier checkpoint.
        depths: `algpt2.training.random_depth.RandomDepth` of `--random-depth`; `None` trains at the model's depth.
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
    decay_steps: int
    is_first: bool
    initial_weights: dict | None = None
    teacher: tuple | None = None
    goes_on: bool = False
    depths: RandomDepth | None = None

    # Whether its losses are those of tokens.
    measures_perplexity = True

    def __post_init__(self):
        self.checkpoints = Checkpoints(self.directory, self.arguments.save_total_limit)
        self.step = self.checkpoints.find(self.arguments.resume) if self.arguments.resume else 0

    @property
    def is_finished(self):
        """bool: whether the weights of a whole run are there, and it is not to go on."""
        return bool(find_weights(self.directory)) and not self.goes_on

    @property
    def length(self):
        """int: the tokens of a block."""
        return self.blocks.length

    def starting_weights(self):
        """The canonical weights that the run starts or goes on with, each read once.

        Returns:
            dict of str to numpy array; `None` if the model starts new.

        Raises:
            InputError: if those of a checkpoint are damaged.
        """
        if self.step:
            return self.read_checkpoint(self.step)
        # They are not kept beside those of the model.
        weights, self.initial_weights = self.initial_weights, None
        return weights

    def take_teacher(self):
        """The configuration and the canonical weights of the teacher, which the run keeps no longer.

        Returns:
            tuple of `ALGPT2Config` and dict of str to numpy array; `None` without a teacher.
        """
        teacher, self.teacher = self.teacher, None
        return teacher

    def read_checkpoint(self, step):
        """The canonical weights of a checkpoint of the run, an int, as a dict of str to numpy array.

        Raises:
            InputError: if the checkpoint is damaged.
        """
        directory = self.checkpoints.path(step)
        if self.is_first:
            require_undamaged(directory)
        try:
            return open_checkpoint(directory, self.arguments.framework).read_weights(self.config)
        except InputError as error:
            raise damaged_checkpoint(directory, error) from error

    def samples(self, indices):
        """Some training samples.

        Args:
            indices: int array (n,), places in the order of training.

        Returns:
            dict of int32 arrays: `input_ids` (n, length), `labels` (n, length), -100 for padding; and with `--sop`
            `sentence_order_label` (n,), 1 where the halves of the block were swapped.
        """
        ids, mask = self.blocks.rows(self.order[indices])
        samples = {"input_ids": ids, "labels": np.where(mask == 1, ids, IGNORED)}
        if self.arguments.sop:
            swapped = self.order.coins(indices)
            ids[swapped] = swap_halves(ids[swapped])
            samples = {"input_ids": ids, "labels": ids, "sentence_order_label": swapped.astype(np.int32)}
        return samples


def evaluate_tokens(run, token_losses):
    """Evaluate a language model, the run's or its teacher, on the held-out text of a run, by its protocol.

    Args:
        run, token_losses: as in `evaluate_run`.

    Returns:
        `algpt2.evaluation.perplexity.Evaluation`.
    """
    return evaluate(token_losses, run.validation, run.length, rows_at_once(run.arguments), run.arguments.eval_protocol)


def rows_at_once(arguments):
    """The blocks or texts of a batch of an evaluation, int; `arguments` are those of a run."""
    return arguments.eval_batch_size or min(arguments.batch_size, EVALUATION_BATCH)


def evaluate_run(run, token_losses, sentence_orders):
    """Evaluate on the held-out text of a run, by its protocol.

    Args:
        run: `Run`.
        token_losses: function from int32 ids (batch, length) to float losses (batch, length - 1), in nats.
        sentence_orders: function from int32 ids (batch, length) to the orders that the model predicts, int (batch,);
            used with `--sop` only.

    Returns:
        tuple of an `algpt2.evaluation.perplexity.Evaluation` and a dict that holds the `eval_sop_accuracy`, if there is
        one.
    """
    evaluation, batch_size = evaluate_tokens(run, token_losses), rows_at_once(run.arguments)
    if not run.arguments.sop or len(run.validation.tokens) < 2 * run.length:
        return evaluation, {}
    blocks = Blocks(run.validation, run.length)
    right = 0
    for start in range(0, len(blocks), batch_size):
        ids, _ = blocks.rows(np.arange(start, min(start + batch_size, len(blocks))))
        # Every other block is swapped.
        swapped = (np.arange(len(ids)) + start) % 2
        ids = np.where(swapped[:, None], swap_halves(ids), ids)
        right += int((sentence_orders(ids) == swapped).sum())
    return evaluation, {"eval_sop_accuracy": right / len(blocks)}


def start_run(run):
    """Print what a run works on, and leave behind what it does not go on from; its checkpoint is read already.

    Args:
        run: `Run`.
    """
    if not run.is_first:
        return
    blocks, tokens = run.order.block_count, run.arguments.batch_size * run.length
    print(
        f"{parameter_count(run.config):,} parameters; {blocks:,} blocks of {run.length} tokens; "
        f"{run.steps} steps of {tokens:,} tokens" + (f", from step {run.step} on" if run.step else ""),
        flush=True,
    )
    if run.goes_on:
        _reopen(run)


def _reopen(run):
    history, patience = run.directory / HISTORY_FILE, run.arguments.early_stopping_patience
    losses = evaluation_losses(read_history(history)) if history.exists() else {}
    losses = {step: loss for step, loss in losses.items() if step <= run.step}
    if stopped_improving(losses, patience):
        raise InputError(
            f"--early-stopping-patience {patience} ended the run at step {run.step}; give more, or an earlier "
            "checkpoint to --resume"
        )
    later = [f"checkpoint-{step}" for step in run.checkpoints.steps() if step > run.step]
    if later:
        print(f"removed {', '.join(later)}: the run makes these steps again", flush=True)
    # The weights of its end go first: a process that is killed here leaves a run that ends as before.
    for kind, path in find_weights(run.directory):
        # An index before its shards, which are none without it.
        for file in (path, *(file for pattern in kind.patterns for file in run.directory.glob(pattern))):
            file.unlink(missing_ok=True)
    run.checkpoints.go_back(run.step, losses)
    record_arguments(run.directory, run.arguments)


def best_weights(run, losses):
    """The canonical weights that a run ends with by `--load-best`: those of its best checkpoint.

    Args:
        run: `Run`, whose last step is made.
        losses: dict of int to float, the evaluation loss by step.

    Returns:
        dict of str to numpy array; `None` without `--load-best`, or if the last step is the best.

    Raises:
        InputError: if they are damaged.
    """
    step = _kept_step(run, losses)
    return None if step is None or step == max(losses) else run.read_checkpoint(step)


def finish_run(run):
    """Draw the figure of a run, write its model card, say which weights it has and upload it if asked.

    Args:
        run: `Run`, whose weights are written.

    Raises:
        InputError: if the directory cannot be written, or the hub refuses.
    """
    records = read_history(run.directory / HISTORY_FILE)
    if run.measures_perplexity:
        draw_perplexity({run.directory.name: records}, run.directory / FIGURE_FILE, run.arguments.eval_protocol)
    losses = evaluation_losses(records)
    step = _kept_step(run, losses)
    write_model_card(run.directory, run.config, vars(run.arguments), records, run.arguments.framework, step)
    _report_best(run, losses, step)
    if run.arguments.push_to_hub:
        upload(run.directory, run.arguments.push_to_hub)


def finished(run):
    """str: that a run is finished, and how it can go on."""
    going_on = f"--resume with more than --max-steps {run.steps} goes on, " if run.checkpoints.steps() else ""
    name = run.arguments.output_dir
    return f"{name}: the run is finished; {going_on}--init-from {name} starts a new one with its weights"


def _kept_step(run, losses):
    """The step whose weights a run ends with by `--load-best`; `None` without, for the last one."""
    if not run.arguments.load_best or not losses:
        return None
    return run.checkpoints.best(losses) or min(losses, key=losses.get)


def _report_best(run, losses, kept):
    if kept:
        print(f"the weights are those of step {kept}: the lowest evaluation loss of a checkpoint, {losses[kept]:.4g}")
    elif losses:
        best, last = min(losses, key=losses.get), max(losses)
        if losses[last] > NOTABLY * losses[best]:
            kept = run.checkpoints.best(losses)
            place = "checkpoint-best holds its weights" if kept == best else "--load-best would have kept its weights"
            print(
                f"the last evaluation loss, {losses[last]:.4g}, is {losses[last] / losses[best] - 1:.1%} above the "
                f"lowest, {losses[best]:.4g} at step {best}; {place}"
            )


def swap_halves(ids):
    """Blocks with their second half first.

    Args:
        ids: int array (n, length).

    Example:
        >>> swap_halves(np.array([[1, 2, 3, 4]]))
        array([[3, 4, 1, 2]])
    """
    return np.roll(ids, -(ids.shape[1] // 2), axis=1)
