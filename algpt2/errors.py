"""The errors that a command line answers with a message: wrong input, and a run that cannot go on.

Whatever imports this project imports this file first, so that it stays light.
"""

import contextlib
import os
import re
import signal
import sys
import threading

# The most characters of a message, of which the last ones say what to do.
LONGEST, END = 1500, 300
PACKAGES = ("algpt2", "algpt2_pt", "algpt2_tf", "convert")


def one_line(text):
    """A message in one line that is not too long to read, whatever names and texts it quotes.

    Args:
        text: str, or an exception.

    Returns:
        str.

    Example:
        >>> one_line("two\\n  lines, a bell \\a")
        'two lines, a bell \\\\x07'
    """
    text = " ".join(line.strip() for line in str(text).splitlines())
    text = re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - END]} [...] {text[-END:]}"


class InputError(ValueError):
    """Wrong input; the message says what was found, what was expected and what to do."""

    def __init__(self, message=""):
        super().__init__(one_line(message))


class RunError(RuntimeError):
    """A run that cannot go on: its loss is not finite, or another worker is gone."""

    def __init__(self, message=""):
        super().__init__(one_line(message))


@contextlib.contextmanager
def exit_on_error(program):
    """Turn errors into one message on standard error and an exit code: InputError 2, RunError 1, Ctrl-C 130.

    Args:
        program: str. The name that starts the message.
    """
    _open_standard_streams()
    try:
        yield
        sys.stdout.flush()
    except InputError as error:
        _exit(program, f"error: {error}", 2)
    except RunError as error:
        _exit(program, f"error: {error}", 1)
    except KeyboardInterrupt:
        _exit(program, "interrupted", 130)
    except BrokenPipeError:
        # As of a process that SIGPIPE ends, since nobody reads on. Python flushes once more as it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except UnicodeEncodeError as error:
        if sys.getfilesystemencoding() == "utf-8":
            raise
        problem = f"error: the encoding of this locale is {error.encoding}, which not all names and texts have"
        _exit(program, f"{problem}; set LC_ALL=C.UTF-8, or PYTHONUTF8=1", 2)


def _exit(program, message, code):
    print(f"{program}: {message}", file=sys.stderr)
    sys.exit(code)


def _open_standard_streams():
    """Have standard output and error take all text, and go nowhere if they are closed."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # Else the next file to be opened gets the number, and what is printed.
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))
        elif (stream.encoding or "").lower() != "utf-8" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _exit_at_once(number, frame):
    os.write(2, b"interrupted\n")
    os._exit(130)


@contextlib.contextmanager
def interruptible():
    """Have Ctrl-C raise a KeyboardInterrupt, for what has to be cleaned up; elsewhere it ends a command at once."""
    at_once = signal.getsignal(signal.SIGINT) is _exit_at_once and _is_main_thread()
    if at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if at_once:
            signal.signal(signal.SIGINT, _exit_at_once)


def _is_main_thread():
    return threading.current_thread() is threading.main_thread()


def _is_command():
    """Whether Python was started with a command of this project."""
    arguments = iter(sys.orig_argv[1:])
    for argument in arguments:
        if argument == "-m":
            return next(arguments, "").partition(".")[0] in PACKAGES
        if argument in ("-W", "-X"):
            next(arguments, None)
        elif not argument.startswith("-"):
            return os.path.basename(argument) == "algpt2"
    return False


# Libraries that are being loaded would turn a KeyboardInterrupt into errors of their own, or lose it.
if _is_command() and _is_main_thread():
    signal.signal(signal.SIGINT, _exit_at_once)
