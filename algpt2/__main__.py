"""`algpt2`, or `python -m algpt2`: all commands of the project as subcommands of one."""

import sys

from algpt2.cli import Parser, did_you_mean
from algpt2.errors import exit_on_error
from algpt2.imports.frameworks import FRAMEWORKS, import_module, installed_frameworks

# The module and what it does, by the name of the command; `{package}` is that of the framework.
COMMANDS = {
    "train": ("{package}.train", "train a model"),
    "evaluate": ("{package}.evaluate", "measure the perplexity of a checkpoint on a text"),
    "generate": ("{package}.generate", "continue texts"),
    "benchmark": ("algpt2.benchmark.__main__", "how fast a checkpoint is here, in each runtime and precision"),
    "compare": ("algpt2.run", "several runs as one figure and one table"),
    "convert": ("convert.cli", "inspect, convert, verify or export a checkpoint"),
    "tokenization": ("algpt2.tokenization", "train a tokenizer"),
    "tfrecords": ("algpt2_tf.tfrecords", "write a tokenized text as TFRecords, to train from a bucket"),
    "demo": ("algpt2.demo.__main__", "try checkpoints in a browser"),
    "hub": ("algpt2.hub", "upload a directory to the Hugging Face hub"),
}
# The commands whose own parser expects the name of the command as its first argument.
WITH_OWN_NAME = ("compare",)


def main(argv=None):
    """Run a command.

    Args:
        argv: list of str. The command, `--framework` and the command's own arguments; by default those of the process.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(
        prog="algpt2", description="Train, evaluate, convert and run ALGPT2.", allow_abbrev=False, takes_all=True
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, add_help=False, allow_abbrev=False, takes_all=True)
        if "{package}" in module:
            command.add_argument("--framework", choices=FRAMEWORKS, default=default_framework())
    arguments, rest = parser.parse_known_args(argv)
    module = COMMANDS[arguments.command][0]
    if "{package}" in module:
        # The command's own parser would not know what was meant.
        for flag in (argument.partition("=")[0] for argument in rest):
            if hint := did_you_mean(flag, ["--framework"]):
                parser.error(f"unknown argument {flag}{hint}")
        module = module.format(package=FRAMEWORKS[arguments.framework].package)
    with exit_on_error("algpt2"):
        program = import_module(module)
    program.main([arguments.command, *rest] if arguments.command in WITH_OWN_NAME else rest)


def default_framework():
    """str: PyTorch, unless only TensorFlow is installed."""
    return next(iter(installed_frameworks()), "pytorch")


if __name__ == "__main__":
    main()
