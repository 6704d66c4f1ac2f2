"""The request to stop that ends a run with a checkpoint."""

import os
import signal
import threading


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a request to stop after the step; the second ends the program.

    Example:
        >>> with StopRequest() as request:
        ...     request.made
        False
    """

    def __init__(self):
        self.made = False

    def __enter__(self):
        self._handlers = {}
        # Python takes signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self.made:
            raise KeyboardInterrupt
        self.made = True
        # A signal may come in the middle of a print, which cannot be entered twice.
        os.write(1, b"stopping after this step, with a checkpoint\n")
