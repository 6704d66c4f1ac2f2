"""What the command lines share: their help, their number types, and the arguments of a checkpoint."""

import argparse
import contextlib
import difflib
import itertools
import math
import re
import sys

from algpt2.errors import exit_on_error, is_command, one_line
from algpt2.imports.frameworks import FRAMEWORKS, import_module
from algpt2.imports.unneeded import UNNEEDED_BY_KERAS, hidden, uncollected, use_transformers_without_torch

# The programs that need transformers, but not PyTorch.
WITHOUT_TORCH = ("algpt2_tf.", "algpt2.data.")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every argument that has one."""

    def _get_help_string(self, action):
        return action.help if action.default is None or action.default is False else super()._get_help_string(action)


# Flags whose own check reports an empty text.
MAY_BE_EMPTY = {"--stop"}


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line, with the flag or the value that was probably meant.

    Args:
        takes_all: bool. Whether arguments that it does not know are left to another one.
        takes_empty: bool. Whether an empty value means that there is none.
        **kwargs: as in `argparse.ArgumentParser`.
    """

    def __init__(self, *args, takes_all=False, takes_empty=False, formatter_class=HelpFormatter, **kwargs):
        super().__init__(*args, formatter_class=formatter_class, **kwargs)
        self.takes_all, self.takes_empty = takes_all, takes_empty

    def parse_known_args(self, args=None, namespace=None):
        args = list(sys.argv[1:] if args is None else args)
        if not self.takes_all and self._subparsers is None:
            # An unknown flag is reported first: what follows it would be taken for something else.
            for name in (arg.partition("=")[0] for arg in itertools.takewhile("--".__ne__, args)):
                flags = self._option_string_actions
                if name.startswith("--") and " " not in name and not any(flag.startswith(name) for flag in flags):
                    hint = did_you_mean(name, flags) or "; --help names those that there are"
                    self.error(f"unknown argument {name}{hint}")
        arguments, rest = super().parse_known_args(args, namespace)
        if rest and not self.takes_all:
            rest = self._take_late(arguments, rest)
        if rest and not self.takes_all:
            self.error(f"unrecognized arguments: {' '.join(rest)}; --help names those that there are")
        return arguments, rest

    def _take_late(self, arguments, rest):
        """Give the last positional argument what stands behind a flag, where argparse has already ended it.

        Args:
            arguments: `argparse.Namespace`, which may be changed.
            rest: list of str. What argparse left over.

        Returns:
            list of str: what is still left over.
        """
        last = next(reversed(self._get_positional_actions()), None)
        values = [value for value in rest if value != "--"]
        if last is None or any(value.startswith("-") and value != "-" for value in values if "--" not in rest):
            return rest
        if last.nargs == "+":
            getattr(arguments, last.dest).extend(values)
            return []
        if last.nargs == "?" and len(values) == 1 and getattr(arguments, last.dest) is None:
            setattr(arguments, last.dest, values[0])
            return []
        return rest

    def _get_value(self, action, text):
        # An unset variable of a shell; what takes no value, or text that may be empty, says so itself.
        says_itself = action.nargs == "?" or action.type or action.choices or set(action.option_strings) & MAY_BE_EMPTY
        if not text and action.option_strings and not (self.takes_empty or says_itself):
            raise argparse.ArgumentError(action, "is followed by an empty value; give one, or leave it out")
        return super()._get_value(action, text)

    def _check_value(self, action, value):
        choices = action.choices
        if choices is not None and value not in choices:
            hint = did_you_mean(value, choices)
            names = ", ".join(map(str, choices))
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}{hint}; choose one of {names}")

    def error(self, message):
        """Print a message in one line, and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)}\n")


def did_you_mean(found, possible):
    """The end of a message about an unknown name.

    Args:
        found: str.
        possible: iterable of str. The names that there are.

    Returns:
        str, empty if none of them is similar.

    Example:
        >>> did_you_mean("--epoch-count", ["--epochs", "--eval-steps"])
        '; did you mean --epochs?'
    """
    closest = difflib.get_close_matches(str(found), list(map(str, possible)), n=1)
    return f"; did you mean {closest[0]}?" if closest else ""


def _number(convert, low, name, high=sys.float_info.max):
    def parse(text):
        value = convert(text)
        if not low <= value <= high:
            raise ValueError
        return value

    # argparse shows the name where the value is wrong.
    parse.__name__, parse.__doc__ = name, f"A {name} from a command line."
    return parse


def byte_size(text):
    """A size from a command line, such as `5GB`, as `huggingface_hub` and transformers take it."""
    if not re.fullmatch(r"[1-9]\d*[KMGT]B", text.upper()):
        raise ValueError
    return text.upper()


byte_size.__name__ = "size such as 500MB or 5GB"
positive_int = _number(int, 1, "positive integer")
natural_int = _number(int, 0, "non-negative integer")
port = _number(int, 0, "port from 0 to 65535", high=2**16 - 1)
positive_float = _number(float, sys.float_info.min, "positive number")
natural_float = _number(float, 0, "non-negative number")
probability = _number(float, sys.float_info.min, "probability above 0", high=1)
part = _number(float, sys.float_info.min, "number above 0 and at most 1", high=1)
share = _number(float, 0, "number from 0 to 1", high=1)
fraction = _number(float, sys.float_info.min, "number between 0 and 1", high=math.nextafter(1, 0))
temperature = _number(float, 0.01, "number from 0.01 to 100", high=100)
seed = _number(int, 0, "seed below 2**32", high=2**32 - 1)


def flag(name):
    """The flag, str, of an argument's name, str."""
    return f"--{name.replace('_', '-')}"


def checkpoint_parser(framework, program, description):
    """The command line of a program that reads a checkpoint.

    Args:
        framework: str, one of `FRAMEWORKS`: the one that computes.
        program: str. The module of the framework's package.
        description: str.

    Returns:
        `argparse.ArgumentParser`; a framework may add its own arguments.
    """
    parser = Parser(
        prog=f"python -m {FRAMEWORKS[framework].package}.{program}",
        description=f"{description}, in {FRAMEWORKS[framework].title}.",
    )
    parser.set_defaults(framework=framework)
    parser.add_argument("checkpoint", help="a checkpoint directory, or the id of a hub repository")
    return parser


def add_device_argument(group, verb):
    """Add the argument that chooses a device.

    Args:
        group: group of an `argparse.ArgumentParser`.
        verb: str. What is done there.
    """
    group.add_argument(
        "--device",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help=f"{verb} on the CPU, on GPUs, or on GPUs if there are (auto)",
    )


def run_command(parser, function, argv=None, parse=Parser.parse_args):
    """Parse a command line, and only then import what it calls: a framework takes seconds to start.

    Args:
        parser: `argparse.ArgumentParser`.
        function: str, with its module, such as `"algpt2_pt.evaluation.run"`, which takes the arguments; or what gives
            that of the arguments.
        argv: list of str; by default that of the process.
        parse: function of the parser and argv.
    """
    with exit_on_error(parser.prog):
        arguments = parse(parser, argv)
        module, _, name = (function(arguments) if callable(function) else function).rpartition(".")
        with contextlib.ExitStack() as quickly:
            # Another process may want afterwards what is hidden, and looks for garbage as it likes.
            if is_command():
                quickly.enter_context(uncollected())
                if module.startswith(WITHOUT_TORCH):
                    use_transformers_without_torch()
                    quickly.enter_context(hidden(*UNNEEDED_BY_KERAS))
            program = getattr(import_module(module), name)
        program(arguments)
