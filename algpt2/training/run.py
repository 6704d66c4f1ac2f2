"""One training run: its data, its configuration and its directory."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from algpt2.checkpoints.checkpoint import open_checkpoint
from algpt2.checkpoints.formats import find_weights
from algpt2.checkpoints.weights import parameter_count
from algpt2.configuration import ALGPT2Config
from algpt2.data.packing import Blocks, TokenizedText, TrainingOrder
from algpt2.errors import InputError
from algpt2.evaluation.perplexity import evaluate
from algpt2.hub import upload
from algpt2.training.figure import draw_perplexity
from algpt2.training.history import FIGURE_FILE, HISTORY_FILE, read_history
from algpt2.training.loss import IGNORED
from algpt2.training.model_card import write_model_card
from algpt2.training.run_directory import Checkpoints, damaged_checkpoint

# The logits of a larger batch may not fit into memory, even if training computes it in parts.
EVALUATION_BATCH = 16


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

    def __post_init__(self):
        self.checkpoints = Checkpoints(self.directory, self.arguments.save_total_limit)
        self.step = self.checkpoints.latest() if self.arguments.resume else 0

    @property
    def is_finished(self):
        """bool: whether the weights of a whole run are there."""
        return bool(find_weights(self.directory))

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
            directory = self.checkpoints.path(self.step)
            try:
                return open_checkpoint(directory, self.arguments.framework).read_weights(self.config)
            except InputError as error:
                raise damaged_checkpoint(directory, error) from error
        # They are not kept beside those of the model.
        weights, self.initial_weights = self.initial_weights, None
        return weights

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
    arguments = run.arguments
    batch_size = min(arguments.batch_size, EVALUATION_BATCH)
    evaluation = evaluate(token_losses, run.validation, run.length, batch_size, arguments.eval_protocol)
    if not arguments.sop or len(run.validation.tokens) < 2 * run.length:
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


def report_start(run):
    """Print what a run works on."""
    if run.is_first:
        blocks, tokens = run.order.block_count, run.arguments.batch_size * run.length
        print(
            f"{parameter_count(run.config):,} parameters; {blocks:,} blocks of {run.length} tokens; "
            f"{run.steps} steps of {tokens:,} tokens" + (f", from step {run.step} on" if run.step else ""),
            flush=True,
        )


def finish_run(run):
    """Draw the figure of a run, write its model card and upload it if asked.

    Args:
        run: `Run`, whose weights are written.

    Raises:
        InputError: if the directory cannot be written, or the hub refuses.
    """
    records = read_history(run.directory / HISTORY_FILE)
    draw_perplexity({run.directory.resolve().name: records}, run.directory / FIGURE_FILE, run.arguments.eval_protocol)
    write_model_card(run.directory, run.config, vars(run.arguments), records, run.arguments.framework)
    if run.arguments.push_to_hub:
        upload(run.directory, run.arguments.push_to_hub)


def swap_halves(ids):
    """Blocks with their second half first.

    Args:
        ids: int array (n, length).

    Example:
        >>> swap_halves(np.array([[1, 2, 3, 4]]))
        array([[3, 4, 1, 2]])
    """
    return np.roll(ids, -(ids.shape[1] // 2), axis=1)
