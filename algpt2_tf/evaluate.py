"""Perplexity of a checkpoint in TensorFlow: `python -m algpt2_tf.evaluate DIR`."""

from algpt2.cli import run_command
from algpt2.evaluation.arguments import evaluate_parser


def main(argv=None):
    run_command(evaluate_parser("tensorflow"), "algpt2_tf.evaluation.run", argv)


if __name__ == "__main__":
    main()
