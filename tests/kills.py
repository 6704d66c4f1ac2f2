"""A function that dies before each of its calls that change the file system, as if the process were killed there."""

import os
import sys
import traceback

# What Python tells its audit hooks before it calls the system; `renameat2` is reached by ctypes.
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.chmod", "ctypes.dlsym"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Killed(BaseException):
    """Nothing handles it, and what is done on its way changes nothing, as after a kill."""


def die_at_every_call(prepare, function, check, step=1, in_child=True):
    """Let a function die before its first call, its second, ...; all in one process.

    Args:
        prepare: function called before each time.
        function: function without arguments.
        check: function called after each time, with whether the function died; it asserts something.
        step: int. How many calls there are from one death to the next.
        in_child: bool. Whether the process is a child; TensorFlow, once it has started, does not work in one.

    Returns:
        int: the number of deaths.
    """
    if not in_child:
        return _die_at_every_call(prepare, function, check, step)
    read, write = os.pipe()
    process = os.fork()
    if process:
        os.close(write)
        with os.fdopen(read) as file:
            report = file.read()
        assert os.waitpid(process, 0)[1] == 0, report
        return int(report)
    status = 1
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.write(write, str(_die_at_every_call(prepare, function, check, step)).encode())
        status = 0
    except BaseException:
        os.write(write, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _die_at_every_call(prepare, function, check, step):
    calls, last = 0, None

    def audit(event, arguments):
        nonlocal calls
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if last is not None and (event in CHANGES or writes) and os.devnull not in arguments:
            calls += 1
            if calls >= last:
                raise Killed

    sys.addaudithook(audit)
    deaths = 0
    while True:
        prepare()
        calls, last = 0, deaths * step + 1
        try:
            function()
        except Killed:
            deaths += 1
        except SystemExit as stopped:
            assert not stopped.code, f"call {last}: exit code {stopped.code}"
        died, last = calls >= last, None
        try:
            check(died)
        except AssertionError as error:
            raise AssertionError(f"after a death before call {(deaths - 1) * step + 1}") from error
        if not died:
            return deaths
