"""Train ALGPT2 in TensorFlow: `python -m algpt2_tf.train --help`.

The path of a batch:
1. `prepare_run` reads the text, makes one stream of token ids of it, and cuts that into `Blocks` of `length` ids.
2. `TrainingOrder` derives the block of every sample from the seed alone, so that a resumed run has the same order.
3. `batches` is the `tf.data.Dataset` of them: `input_ids` and `labels`, int32 (batch, length), split over the replicas.
4. `TrainingModel`, under Keras's fit, calls the backbone of backbone.py on its part: embedding (batch, length, E),
   project_in (batch, length, H), the block of each depth, layer_norm, project_out (batch, length, E).
5. `next_token_loss` multiplies that by the embedding, some tokens at a time, and gives the loss of the next token: its
   share of the mean over all tokens of the step, wherever they are; with `--teacher` what `Teacher` says of the same
   tokens is part of it.
6. Gradients are summed over parts and replicas and clipped; the optimizer of optimization.py steps at the rate of its
   schedule.
7. `Reporter` sees every step: `History` prints and records, `evaluate_run` measures the held-out text.
8. `Checkpoints` takes weights, optimizer and random states, written aside and renamed when whole.
9. After the last step: weights, figure and model card into the run directory.
"""

from algpt2.cli import run_command
from algpt2.training.arguments import train_parser
from algpt2.training.given_arguments import parse_train_arguments

STRATEGIES = ("single", "mirrored", "multiworker", "tpu")


def parser():
    """The command line: that of both frameworks, and `--strategy`."""
    result = train_parser("tensorflow", "Keras's fit")
    result.devices.add_argument(
        "--strategy",
        choices=STRATEGIES,
        default="single",
        help="train on one device; on all GPUs of this machine (two logical CPU devices if there are not two); "
        "on the machines of TF_CONFIG; or on the TPU of TPU_NAME",
    )
    return result


def main(argv=None):
    run_command(parser(), "algpt2_tf.training_run.run", argv, parse_train_arguments)


if __name__ == "__main__":
    main()
