"""The one error for wrong input, and what the command lines make of it."""

import contextlib
import sys


class InputError(ValueError):
    """Wrong input; the message says what was found, what was expected and what to do."""


@contextlib.contextmanager
def exit_on_input_error(program):
    """Turn an InputError into one message on standard error and exit code 2; Ctrl-C into exit code 130.

    Args:
        program: str. The name that starts the message.
    """
    try:
        yield
    except InputError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
