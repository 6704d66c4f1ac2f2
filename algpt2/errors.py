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
_WRONG_LOCALE = "error: names and texts need a locale with UTF-8; set LC_ALL=C.UTF-8, or PYTHONUTF8=1"


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


@contextlib.contextmanager
def library_errors(message):
    """Whatever a library raises as an InputError: any Exception, and the panics of Rust, which are none.

    Args:
        message: str. What the reason is put behind.
    """
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{message} ({reason(error)})") from error


def reason(error):
    """str: what an error says, in one line of at most 300 characters; its type if it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class LoadError(InputError, RuntimeError):
    """A checkpoint that a library cannot load, for which transformers raises a RuntimeError."""


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
    is_utf8 = sys.getfilesystemencoding() == "utf-8"
    if not is_utf8 and is_command() and not "".join(sys.argv).isascii():
        # Libraries that are not written in Python would look for other files.
        _exit(program, _WRONG_LOCALE, 2)
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
        # As of a process that SIGPIPE ends, since nobody reads on.
        _give_up_output()
        sys.exit(128 + signal.SIGPIPE)
    except UnicodeEncodeError:
        if is_utf8:
            raise
        _exit(program, _WRONG_LOCALE, 2)
    except OSError as error:
        _exit(program, f"error: {one_line(error)}", 2)
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        _exit(program, f"error: out of memory ({one_line(error)}); try a smaller batch, length or model", 1)


def _is_out_of_memory(error):
    words = ("allocate", "out of memory")
    names = ("OutOfMemoryError", "ResourceExhaustedError")
    is_said = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return isinstance(error, MemoryError) or type(error).__name__ in names or is_said


def _exit(program, message, code):
    try:
        sys.stdout.flush()
    except OSError:
        _give_up_output()
    print(f"{program}: {message}", file=sys.stderr)
    sys.exit(code)


def _give_up_output():
    # Python writes what is left once more as it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


def is_command():
    """bool: whether Python was started with a command of this project."""
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
if is_command() and _is_main_thread():
    signal.signal(signal.SIGINT, _exit_at_once)
