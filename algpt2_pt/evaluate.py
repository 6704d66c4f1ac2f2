"""Perplexity of a checkpoint in PyTorch: `python -m algpt2_pt.evaluate DIR`."""

from algpt2.cli import run_command
from algpt2.evaluation.arguments import evaluate_parser


def add_quantization(parser, choices=("int8",)):
    """Add the argument of rounded weights to a command line; returns it."""
    parser.devices.add_argument("--quantize", choices=choices, help="round the weights, for speed on a CPU")
    return parser


def main(argv=None):
    run_command(add_quantization(evaluate_parser("pytorch")), "algpt2_pt.evaluation.run", argv)


if __name__ == "__main__":
    main()
