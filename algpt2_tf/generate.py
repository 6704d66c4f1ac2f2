"""Continue a text in TensorFlow: `python -m algpt2_tf.generate DIR PROMPT`."""

from algpt2.cli import run_command
from algpt2.generation.arguments import generate_parser


def main(argv=None):
    run_command(generate_parser("tensorflow"), "algpt2_tf.generation.run", argv)


if __name__ == "__main__":
    main()
