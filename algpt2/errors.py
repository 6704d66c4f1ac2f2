"""The errors that a command line answers with a message: wrong input, and a run that cannot go on."""

import contextlib
import sys


class InputError(ValueError):
    """Wrong input; the message says what was found, what was expected and what to do."""


class RunError(RuntimeError):
    """A run that cannot go on: its loss is not finite, or another worker is gone."""


@contextlib.contextmanager
def exit_on_error(program):
    """Turn errors into one message on standard error and an exit code: InputError 2, RunError 1, Ctrl-C 130.

    Args:
        program: str. The name that starts the message.
    """
    try:
        yield
    except InputError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except RunError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
