"""Variants in processes of their own, as runtimes with threads of their own slow each other down within one."""

import multiprocessing
from collections.abc import Callable
from typing import NamedTuple


class Work(NamedTuple):
    """What is timed.

    Args:
        run: function without arguments.
        size: int. The bytes of the weights as they are stored.
    """

    run: Callable
    size: int = 0


class Worker:
    """A process that builds one variant and calls it when it is told to.

    Args:
        build: function of a module, with its arguments, to a `Work`.
        *arguments: of `build`.

    Attributes:
        size: int.
    """

    def __init__(self, build, *arguments):
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, build, *arguments), daemon=True)
        self._process.start()
        other.close()
        self.size = self._connection.recv()

    def run(self):
        """Do the work, and wait until it is done."""
        self._connection.send(None)
        self._connection.recv()


def _work(connection, build, *arguments):
    work = build(*arguments)
    connection.send(work.size)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        work.run()
        connection.send(None)
