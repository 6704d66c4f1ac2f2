"""The command line of conversion: `python -m convert --help`."""

import json
import sys

from algpt2.checkpoints.formats.lazy_tensor import DTYPES
from algpt2.cli import Parser, byte_size, positive_int
from algpt2.errors import InputError, exit_on_error
from convert.exports import FORMATS

SOURCES = "a checkpoint of any system, a GGUF file of a GPT-2, or an adapter of PEFT with its base"
CONVERSIONS = {
    "pt2tf": ("PyTorch's weights to Keras's", "Write model.weights.h5 from PyTorch's weights"),
    "tf2pt": ("Keras's weights to PyTorch's", "Write model.safetensors from Keras's weights"),
    "to-tf": (f"{SOURCES} to Keras's", f"Write an ALGPT2 with Keras's weights from {SOURCES}"),
    "to-pt": (f"{SOURCES} to PyTorch's", f"Write an ALGPT2 with safetensors from {SOURCES}"),
    "to-gpt2": ("any ALGPT2 to a plain GPT-2", "Write a plain GPT-2 that gives the same logits"),
}


def build_parser():
    """The command line.

    Returns:
        `algpt2.cli.Parser`.
    """
    parser = Parser(
        prog="python -m convert", description="Move checkpoints between PyTorch, TensorFlow and other systems."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="what a checkpoint is, and what is wrong with it")
    inspect.add_argument("directory", help="a checkpoint of any system")
    inspect.add_argument("--json", action="store_true", help="print JSON")
    for name, (summary, description) in CONVERSIONS.items():
        command = commands.add_parser(name, help=summary, description=f"{description}, then compare logits.")
        _add_conversion(command, name)
    _add_verification(
        commands.add_parser(
            "verify",
            help="compare two checkpoints, or both frameworks",
            description="Compare loss, logits, hidden states and a greedy continuation.",
        )
    )
    _add_export(
        commands.add_parser(
            "export",
            help="a format for deployment",
            description="Write a checkpoint in a format for deployment, run it by its runtime and compare the logits.",
        )
    )
    return parser


def _add_conversion(command, name):
    in_place, from_any = name in ("pt2tf", "tf2pt"), name in ("to-tf", "to-pt")
    if from_any:
        command.add_argument("directory", metavar="SOURCE", help="a checkpoint, a GGUF file or an adapter")
        command.add_argument("--base", metavar="DIR", help="of an adapter: its base (default: the one that it names)")
    else:
        command.add_argument("directory", help="a checkpoint directory")
    default = " (default: add to the given one)" if in_place else ""
    command.add_argument("--output", metavar="DIR", required=not in_place, help=f"write a new directory{default}")
    command.add_argument("--dtype", choices=list(DTYPES), help="of the weights (default: as stored)")
    command.add_argument(
        "--max-shard-size",
        type=byte_size,
        metavar="SIZE",
        help="larger weights become shards (default: 5GB)",
    )
    command.add_argument("--force", action="store_true", help="replace what is there already")
    command.add_argument("--no-verify", action="store_true", help="do not run the models")
    if in_place:
        command.add_argument(
            "--training-state",
            action="store_true",
            help="of a run, or one of its checkpoints: make a run of the other framework that --resume goes on with",
        )
    if name == "to-gpt2":
        command.add_argument("--keras-hub", action="store_true", help="a preset of KerasHub's GPT2CausalLM")
        command.add_argument("--lossy", action="store_true", help="the nearest GPT-2 where none is exact")


def _add_verification(command):
    command.add_argument("directory", help="a checkpoint of any system")
    command.add_argument("other", nargs="?", metavar="DIR", help="a second one (default: the first in both frameworks)")
    command.add_argument(
        "--dataset", metavar="NAME", help="python-docs or text files, for the loss (default: fixed ids)"
    )
    command.add_argument("--prompt", metavar="TEXT", help="the text to continue (default: fixed ids)")
    command.add_argument("--length", type=positive_int, metavar="N", help="tokens in a block (default: n_positions)")
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_export(command):
    command.add_argument("directory", help="a checkpoint of any system")
    command.add_argument("--to", choices=FORMATS, required=True, help="the format")
    command.add_argument("--output", metavar="PATH", required=True, help="a directory, or a .tflite or .gguf file")
    command.add_argument(
        "--quantize",
        choices=("none", "int8", "q4", "f16", "q8_0", "q4_0"),
        help="round the weights: int8 of litert, int8 or q4 of onnx and web, f16, q8_0 or q4_0 of gguf "
        "(default: int8 of web, else none)",
    )
    command.add_argument(
        "--length", type=positive_int, metavar="N", help="fix the length of litert, and the batch to 1 (default: any)"
    )
    command.add_argument(
        "--assets", metavar="DIR", help="of web: where npm installed transformers.js, to be copied (default: by a CDN)"
    )
    command.add_argument("--force", action="store_true", help="replace an export that is there already")
    command.add_argument("--no-verify", action="store_true", help="do not run what was written")


def main(argv=None):
    parser = build_parser()
    arguments = parser.parse_args(argv)
    with exit_on_error(parser.prog):
        run = {"inspect": _inspect, "verify": _verify, "export": _export}.get(arguments.command, _convert)
        problem = run(arguments)
    if problem:
        print(f"{parser.prog}: {problem}", file=sys.stderr)
        sys.exit(1)


def _inspect(arguments):
    from convert.inspection import inspect_checkpoint, summary

    report = inspect_checkpoint(arguments.directory)
    print(json.dumps(report) if arguments.json else summary(report))
    count = len(report["problems"])
    return f"{count} problem{'s' if count > 1 else ''}" if count else None


def _verify(arguments):
    if arguments.length and not arguments.dataset:
        raise InputError("--length is the length of the blocks of --dataset; give a --dataset, or leave --length out")
    # The frameworks take seconds to start; a wrong command line need not wait for them.
    from convert.comparison import as_json, table
    from convert.verification import verify

    names, comparisons = verify(
        arguments.directory, arguments.other, arguments.dataset, arguments.prompt, arguments.length
    )
    print(json.dumps(as_json(names, comparisons)) if arguments.json else table(names, comparisons))
    return _failure(comparisons)


def _convert(arguments):
    if "training_state" in arguments and arguments.training_state:
        return _carry(arguments)
    from convert import conversion, plain_gpt2

    name = arguments.command.replace("-", "_")
    convert = plain_gpt2.to_gpt2 if name == "to_gpt2" else getattr(conversion, name)
    options = ("max_shard_size", "keras_hub", "lossy", "base")
    given = {option: getattr(arguments, option) for option in options if getattr(arguments, option, None)}
    result = convert(arguments.directory, arguments.output, arguments.dtype, arguments.force, **given)
    print(f"wrote {result.directory}, {result.dtype}", flush=True)
    if result.rounded_tensor:
        print(f"largest rounding error: {result.rounding_error:.2e} of the largest value of {result.rounded_tensor}")
    return _compare(arguments, result.source, result.directory, result.dtype)


def _carry(arguments):
    if arguments.dtype or arguments.max_shard_size or not arguments.output:
        raise InputError(
            "--training-state makes a new run: give it an --output, and leave out --dtype and --max-shard-size"
        )
    from convert import carry_run

    carried = getattr(carry_run, f"{arguments.command}_run")(arguments.directory, arguments.output, arguments.force)
    print(carry_run.summary(carried))
    print(f"wrote {carried.checkpoint}", flush=True)
    return _compare(arguments, carried.source, carried.checkpoint)


def _compare(arguments, source, target, dtype=None):
    if arguments.no_verify:
        return None
    from convert.comparison import table
    from convert.verification import compare_conversion

    names, comparisons = compare_conversion(source, target, arguments.command.replace("-", "_"), dtype)
    print(table(names, comparisons))
    return _failure(comparisons)


def _export(arguments):
    from algpt2.checkpoints.checkpoint import opened
    from convert.comparison import table
    from convert.export import compare_export, describe_size, export

    options = {"quantize": arguments.quantize, "length": arguments.length}
    checkpoint = opened(arguments.directory)
    target = export(
        checkpoint, arguments.to, arguments.output, force=arguments.force, assets=arguments.assets, **options
    )
    print(f"wrote {describe_size(checkpoint, target)}", flush=True)
    if arguments.no_verify:
        return None
    names, comparisons = compare_export(checkpoint, arguments.to, target, **options)
    print(table(names, comparisons))
    return _failure(comparisons)


def _failure(comparisons):
    return None if all(comparison.passed for comparison in comparisons) else "the models differ beyond tolerance"
