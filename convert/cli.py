"""The command line of conversion: `python -m convert --help`."""

import json
import sys

from algpt2.checkpoints.formats.lazy_tensor import DTYPES
from algpt2.cli import Parser, byte_size, natural_int, positive_int
from algpt2.errors import InputError, exit_on_error
from algpt2.imports.frameworks import import_module
from algpt2.training.arguments import SHARING_HELP
from convert.compression import STARTS, TOKENS
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
    _add_compression(
        commands.add_parser(
            "compress",
            help="any checkpoint to a smaller ALGPT2, to be trained on",
            description="Write a smaller ALGPT2 that starts as near to a checkpoint as its size allows: blocks shared "
            "over depths, what each depth adds to them, and embeddings of lower rank. Then show how near it is.",
        )
    )
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
        _add_source(command)
    else:
        command.add_argument("directory", help="a checkpoint directory")
    default = " (default: add to the given one)" if in_place else ""
    command.add_argument("--output", metavar="DIR", required=not in_place, help=f"write a new directory{default}")
    _add_weights(command)
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


def _add_source(command):
    command.add_argument("directory", metavar="SOURCE", help="a checkpoint, a GGUF file or an adapter")
    command.add_argument("--base", metavar="DIR", help="of an adapter: its base (default: the one that it names)")


def _add_weights(command):
    command.add_argument("--dtype", choices=list(DTYPES), help="of the weights (default: as stored)")
    command.add_argument(
        "--max-shard-size",
        type=byte_size,
        metavar="SIZE",
        help="larger weights become shards (default: 5GB)",
    )
    command.add_argument("--force", action="store_true", help="replace what is there already")


def _add_compression(command):
    _add_source(command)
    command.add_argument("--output", metavar="DIR", required=True, help="write a new directory")
    size = command.add_argument_group("size")
    size.add_argument("--sharing", metavar="PATTERN", required=True, help=SHARING_HELP)
    size.add_argument(
        "--embedding-size", type=positive_int, metavar="E", help="factorize the embeddings (default: leave them)"
    )
    size.add_argument(
        "--depth-lora-rank",
        type=natural_int,
        default=0,
        metavar="R",
        help="let each depth add a product of this rank to the matrices of its block",
    )
    size.add_argument("--depth-norms", action="store_true", help="let each depth keep its normalizations")
    size.add_argument("--depth-biases", action="store_true", help="let each depth keep its biases")
    start = command.add_argument_group("start")
    start.add_argument(
        "--init",
        choices=STARTS,
        default="average",
        help="start a shared block with the mean of its depths, with the first of them, with depths at even steps from "
        "the first to the last, or with what is best together with the additions of its depths (svd)",
    )
    start.add_argument(
        "--calibration",
        metavar="TEXT",
        help="count errors by what they do to the outputs on this text: python-docs, files, or a hub data set "
        "(default: by the weights alone)",
    )
    start.add_argument(
        "--calibration-tokens", type=positive_int, metavar="N", help=f"read its first N tokens (default: {TOKENS})"
    )
    measure = command.add_argument_group("measurement")
    measure.add_argument(
        "--dataset", metavar="NAME", help="measure the perplexity on python-docs or text files, before and after"
    )
    measure.add_argument(
        "--length", type=positive_int, metavar="N", help="tokens in a row of both texts (default: n_positions)"
    )
    _add_weights(command.add_argument_group("files"))


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
        choices=("none", *dict.fromkeys(name for target in FORMATS.values() for name in target.quantizations)),
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
        commands = {"inspect": _inspect, "compress": _compress, "verify": _verify, "export": _export}
        problem = commands.get(arguments.command, _convert)(arguments)
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
    _print_written(result)
    return _compare(arguments, result.source, result.directory, result.dtype)


def _print_written(conversion):
    print(f"wrote {conversion.directory}, {conversion.dtype}", flush=True)
    if conversion.rounded_tensor:
        error = f"{conversion.rounding_error:.2e} of the largest value of {conversion.rounded_tensor}"
        print(f"largest rounding error: {error}")


def _compress(arguments):
    if arguments.calibration_tokens and not arguments.calibration:
        raise InputError("--calibration-tokens is for a --calibration; give that, or leave it out")
    if arguments.length and not (arguments.calibration or arguments.dataset):
        raise InputError("--length is the length of the rows of --calibration and --dataset; give one, or leave it out")
    from convert.compress import compress

    options = ("sharing", "embedding_size", "init", "calibration", "dataset", "length", "dtype", "force", "base")
    options += ("depth_lora_rank", "depth_norms", "depth_biases", "calibration_tokens", "max_shard_size")
    given = {option: getattr(arguments, option) for option in options if getattr(arguments, option)}
    result = compress(arguments.directory, arguments.output, **given)
    _print_written(result.conversion)
    print(f"\n{result.summary()}")


def _carry(arguments):
    if arguments.dtype or arguments.max_shard_size or not arguments.output:
        raise InputError(
            "--training-state makes a new run: give it an --output, and leave out --dtype and --max-shard-size"
        )
    carry_run = import_module("convert.carry_run")
    carried = getattr(carry_run, f"{arguments.command}_run")(arguments.directory, arguments.output, arguments.force)
    print(carry_run.summary(carried))
    print(f"wrote {carried.checkpoint}", flush=True)
    return _compare(arguments, carried.source, carried.checkpoint)


def _compare(arguments, source, target, dtype=None):
    if arguments.no_verify:
        return None
    from convert.comparison import table
    from convert.verification import compare_conversion

    try:
        names, comparisons = compare_conversion(source, target, arguments.command.replace("-", "_"), dtype)
    except InputError as error:
        raise InputError(f"{error}; --no-verify leaves the comparison out") from error
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
