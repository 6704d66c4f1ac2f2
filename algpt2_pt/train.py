"""Train ALGPT2 in PyTorch: `python -m algpt2_pt.train --help`, or by `torchrun` or `accelerate launch`.

The path of a batch:
1. `prepare_run` reads the text, makes one stream of token ids of it, and cuts that into `Blocks` of `length` ids.
2. `TrainingOrder` derives the block of every sample from the seed alone, so that a resumed run has the same order.
3. `Samples` makes a sample from a block: `input_ids` and `labels`, int64 (length,).
4. `RunTrainer`, transformers' Trainer, stacks samples to (batch, length) and calls the model of modeling_algpt2.py:
   embedding (batch, length, E), project_in (batch, length, H), the block of each depth, ln_f, project_out (batch,
   length, E).
5. `LossInChunks` multiplies that by the embedding, some tokens at a time, and gives the mean loss of the next token;
   with `--teacher` what `Teacher` says of the same tokens is part of it.
6. Backward; gradients are clipped; the optimizer of optimization.py steps at the rate of its schedule.
7. `RunCallback` sees every step: `History` prints and records, `evaluate_run` measures the held-out text.
8. `Checkpoints` takes weights, optimizer and random states, written aside and renamed when whole.
9. After the last step: weights, figure and model card into the run directory.
"""

from algpt2.cli import run_command
from algpt2.training.arguments import train_parser
from algpt2.training.given_arguments import parse_train_arguments


def parser():
    """The command line: that of both frameworks, and `--fsdp`."""
    result = train_parser("pytorch", "transformers' Trainer")
    result.devices.add_argument(
        "--fsdp", action="store_true", help="shard weights and optimizer over the processes of torchrun (FSDP2)"
    )
    return result


def main(argv=None):
    run_command(parser(), "algpt2_pt.training_run.run", argv, parse_train_arguments)


if __name__ == "__main__":
    main()
