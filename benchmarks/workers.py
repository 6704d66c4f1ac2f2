"""Variants in processes of their own, as runtimes with threads of their own slow each other down within one."""

import multiprocessing


class Worker:
    """A process that builds one variant and calls it when it is told to.

    Args:
        build: function of a module, with its arguments, to an object with a function `generate` without arguments, and
            `size`, an int.
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

    def generate(self):
        """Call the variant, and wait until it is done."""
        self._connection.send(None)
        self._connection.recv()


def _work(connection, build, *arguments):
    variant = build(*arguments)
    connection.send(variant.size)
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        variant.generate()
        connection.send(None)
