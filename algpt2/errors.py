"""The errors that a command line answers with a message: wrong input, and training that diverges."""

import contextlib
import sys


class InputError(ValueError):
    """Wrong input; the message says what was found, what was expected and what to do."""


class DivergenceError(ArithmeticError):
    """A loss that is not finite."""


@contextlib.contextmanager
def exit_on_error(program):
    """Turn errors into one message on standard error and an exit code: InputError 2, DivergenceError 1, Ctrl-C 130.

    Args:
        program: str. The name that starts the message.
    """
    try:
        yield
    except InputError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except DivergenceError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        sys.exit(130)
