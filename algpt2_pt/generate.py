"""Continue a text in PyTorch or by ONNX Runtime: `python -m algpt2_pt.generate DIR PROMPT`."""

from algpt2.cli import run_command
from algpt2.errors import InputError
from algpt2.generation.arguments import generate_parser
from algpt2_pt.evaluate import add_quantization

PROGRAMS = {"pytorch": "algpt2_pt.generation.run", "onnx": "algpt2.onnx.generation.run"}


def build_parser():
    """The command line.

    Returns:
        `argparse.ArgumentParser`.
    """
    parser = add_quantization(generate_parser("pytorch"), ("int8", "q4"))
    parser.devices.add_argument(
        "--runtime",
        choices=PROGRAMS,
        default="pytorch",
        help="compute by PyTorch or by ONNX Runtime, which also takes an ONNX directory",
    )
    return parser


def program(arguments):
    """str: the function that runs the arguments."""
    if arguments.quantize == "q4" and arguments.runtime != "onnx":
        raise InputError("--quantize q4 is for --runtime onnx; PyTorch takes int8")
    if arguments.draft_depth and arguments.runtime == "onnx":
        raise InputError("--draft-depth: an ONNX graph has one depth; leave it or --runtime onnx out")
    return PROGRAMS[arguments.runtime]


def main(argv=None):
    run_command(build_parser(), program, argv)


if __name__ == "__main__":
    main()
