"""The same evaluation in the other framework, which this one must not import."""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile

from algpt2.errors import InputError

FRAMEWORKS = {"algpt2_pt": "PyTorch", "algpt2_tf": "TensorFlow"}
LIBRARIES = {"algpt2_pt": "torch", "algpt2_tf": "tensorflow"}


def evaluate_in_other(package, parser, arguments):
    """Evaluate the checkpoint of `--compare` with the same options, in a process of its own.

    Args:
        package: str. `"algpt2_pt"` or `"algpt2_tf"`; the other one evaluates.
        parser: `argparse.ArgumentParser` of evaluation.
        arguments: `argparse.Namespace`, what it parsed.

    Returns:
        list of dict of `algpt2.reporting.record`, one for each depth.

    Raises:
        InputError: if the other framework is not installed, or with its own message.
    """
    other = next(name for name in FRAMEWORKS if name != package)
    if importlib.util.find_spec(LIBRARIES[other]) is None:
        raise InputError(f"--compare: {FRAMEWORKS[other]} is not installed; pip install {LIBRARIES[other]}")
    options = _options(parser, arguments, without=("compare", "figure", "json", "quantize"))
    command = [sys.executable, "-m", f"{other}.evaluate", arguments.compare, "--json", *options]
    print(f"evaluating {arguments.compare} in {FRAMEWORKS[other]}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as directory:
        if len(arguments.depth or ()) > 1:
            # The figure of this framework is the one to keep.
            command += ["--figure", f"{directory}/figure.png"]
        process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode:
        # The frameworks write notes of their own before the message.
        _, found, message = process.stderr.rpartition(f"python -m {other}.evaluate: error: ")
        raise InputError(f"--compare, in {FRAMEWORKS[other]}: {message if found else process.stderr}".rstrip())
    records = json.loads(process.stdout.splitlines()[-1])
    return records if isinstance(records, list) else [records]


def _options(parser, arguments, without):
    """Options that parse to the given arguments again."""
    options, values = [], {name: value for name, value in vars(arguments).items() if name not in without}
    for action in parser._actions:
        value = values.get(action.dest, action.default)
        if not action.option_strings or value == action.default:
            continue
        flag, *others = action.option_strings
        parts = [str(part) for part in (value if isinstance(value, list) else [value])]
        if action.nargs == 0:
            options.append(flag if value else others[-1])
        elif isinstance(action, argparse._AppendAction):
            options += [f"{flag}={part}" for part in parts]
        elif action.nargs:
            options += [flag, *parts]
        else:
            options.append(f"{flag}={','.join(parts)}")
    return options
