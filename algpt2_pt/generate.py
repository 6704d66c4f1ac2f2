"""Continue a text in PyTorch: `python -m algpt2_pt.generate DIR PROMPT`."""

from algpt2.cli import run_command
from algpt2.generation.arguments import generate_parser
from algpt2_pt.evaluate import add_quantization


def main(argv=None):
    run_command(add_quantization(generate_parser("pytorch")), "algpt2_pt.generation.run", argv)


if __name__ == "__main__":
    main()
