"""The numbered checkpoints of a run directory, and the request to stop that ends a run with one."""

import contextlib
import os
import re
import shutil
import signal
import threading
from pathlib import Path

from safetensors import SafetensorError

from algpt2.checkpoint import share_files
from algpt2.errors import InputError

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
BEST = "checkpoint-best"
# Where a checkpoint is until it is whole.
PARTIAL = ".partial"


class Checkpoints:
    """The directories `checkpoint-STEP` of a run: whole or not there, the oldest removed, the best linked.

    Args:
        directory: path of the run.
        limit: int. How many to keep, and the best one besides; `None` keeps all.

    Example:
        >>> checkpoints = Checkpoints("runs/example", limit=2)
        >>> for step, loss in ((10, 3.0), (20, 2.0), (30, 1.0)):
        ...     with checkpoints.writing(step, {step: loss}) as directory:
        ...         _ = (directory / "weights").write_text("...")
        >>> checkpoints.steps()
        [20, 30]
    """

    def __init__(self, directory, limit=None):
        self.directory, self.limit = Path(directory), limit

    def path(self, step):
        """The directory of a checkpoint, whether it is there or not.

        Args:
            step: int.

        Returns:
            `Path`.
        """
        return self.directory / f"checkpoint-{step}"

    def steps(self):
        """list of int: the steps of the checkpoints that are there, in order."""
        names = [CHECKPOINT.fullmatch(path.name) for path in self.directory.glob("checkpoint-*")]
        return sorted(int(match[1]) for match in names if match)

    def latest(self):
        """int: the step of the newest checkpoint, 0 if there is none."""
        return max(self.steps(), default=0)

    @contextlib.contextmanager
    def writing(self, step, losses, is_first=True, wait=lambda: None):
        """A directory to write a checkpoint into, which takes its name only if the block succeeds.

        Then `checkpoint-best` is linked to the checkpoint with the lowest loss, and the oldest are removed.

        Args:
            step: int.
            losses: dict of int to float, the evaluation loss by step.
            is_first: bool. Whether this process is the one that moves and removes directories.
            wait: function that returns when all processes have called it.

        Yields:
            `Path`: an empty directory, the same in all processes, with the name of the checkpoint but elsewhere.

        Raises:
            InputError: if it cannot be written; earlier checkpoints stay.
        """
        partial = self.directory / PARTIAL
        temporary, target = partial / self.path(step).name, self.path(step)
        try:
            if is_first:
                shutil.rmtree(partial, ignore_errors=True)
                temporary.mkdir(parents=True)
            wait()
            yield temporary
            wait()
            if is_first:
                share_files(temporary)
                _flush(temporary)
                self._remove(target)
                os.replace(temporary, target)
                _flush_directory(self.directory)
                self._link_best(losses)
                self._remove_old()
            wait()
        except (OSError, RuntimeError, SafetensorError, InputError) as error:
            cause = storage_error(error)
            if cause is None:
                raise
            kept = f"checkpoint-{self.latest()} is whole" if self.latest() else "there is no earlier one"
            raise InputError(
                f"{target}: cannot be written ({cause}); {kept}; mend that, then go on with --resume"
            ) from cause
        finally:
            if is_first:
                shutil.rmtree(partial, ignore_errors=True)

    def _link_best(self, losses):
        there = [step for step in self.steps() if step in losses]
        if there:
            link = self.directory / PARTIAL / BEST
            link.symlink_to(self.path(min(there, key=losses.get)).name)
            os.replace(link, self.directory / BEST)

    def _remove_old(self):
        if self.limit is None:
            return
        best = os.path.basename((self.directory / BEST).resolve())
        for step in self.steps()[: -self.limit]:
            if self.path(step).name != best:
                self._remove(self.path(step))

    def _remove(self, path):
        # It loses its name first, so that a checkpoint with a name is always whole.
        if path.exists():
            os.replace(path, self.directory / PARTIAL / f"old-{path.name}")


def _flush(directory):
    # Without it, a machine that loses its power could keep the name and lose the contents.
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _flush_directory(directory)


def _flush_directory(directory):
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def storage_error(error):
    """What kept a file from being written, if an error means that; else `None`.

    Args:
        error: `Exception`.
    """
    # Writers of single files have turned their errors into messages already.
    cause = error.__cause__ if isinstance(error, InputError) else error
    # PyTorch reports a full disk by RuntimeErrors, in the words of C++.
    torch_says = ("iostream error", "failed writing file", "unexpected pos")
    is_one = isinstance(cause, (OSError, SafetensorError)) or any(words in str(cause) for words in torch_says)
    return cause if is_one else None


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
