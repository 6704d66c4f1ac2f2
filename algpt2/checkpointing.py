"""The numbered checkpoints of a run directory, and the request to stop that ends a run with one."""

import contextlib
import os
import re
import shutil
import signal
import threading
from pathlib import Path

from safetensors import SafetensorError

from algpt2.errors import InputError

CHECKPOINT = re.compile(r"checkpoint-(\d+)")
BEST = "checkpoint-best"


class Checkpoints:
    """The directories `checkpoint-STEP` of a run: whole or not there, the oldest removed, the best linked.

    Args:
        directory: path of the run.
        limit: int. How many to keep, and the best one besides; `None` keeps all.

    Example:
        >>> checkpoints = Checkpoints("runs/example", limit=2)
        >>> for step in (10, 20, 30):
        ...     with checkpoints.writing(step) as directory:
        ...         _ = (directory / "weights").write_text("...")
        >>> checkpoints.steps()
        [20, 30]
    """

    def __init__(self, directory, limit=None):
        self.directory, self.limit = Path(directory), limit

    def path(self, step):
        """`Path` of the checkpoint of a step."""
        return self.directory / f"checkpoint-{step}"

    def steps(self):
        """list of int: the steps of the checkpoints that are there, in order."""
        names = [CHECKPOINT.fullmatch(path.name) for path in self.directory.glob("checkpoint-*")]
        return sorted(int(match[1]) for match in names if match)

    def latest(self):
        """int: the step of the newest checkpoint, 0 if there is none."""
        return max(self.steps(), default=0)

    @contextlib.contextmanager
    def writing(self, step, is_first=True, wait=lambda: None):
        """A directory to write a checkpoint into, which takes its name only if the block succeeds.

        Args:
            step: int.
            is_first: bool. Whether this process is the one that moves and removes directories.
            wait: function that returns when all processes have called it.

        Yields:
            `Path`: an empty directory, the same in all processes, of the name that the checkpoint will have.

        Raises:
            InputError: if it cannot be written; earlier checkpoints stay.
        """
        partial = self.directory / ".partial"
        temporary, target = partial / self.path(step).name, self.path(step)
        try:
            if is_first:
                shutil.rmtree(partial, ignore_errors=True)
                temporary.mkdir(parents=True)
            wait()
            yield temporary
            wait()
            if is_first:
                _flush(temporary)
                shutil.rmtree(target, ignore_errors=True)
                os.replace(temporary, target)
                self._remove_old()
            wait()
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _is_storage_error(error):
                raise
            kept = f"checkpoint-{self.latest()} is whole" if self.latest() else "there is no earlier one"
            raise InputError(
                f"{target}: cannot be written ({error}); {kept}; free some space, then go on with --resume"
            ) from error
        finally:
            if is_first:
                shutil.rmtree(partial, ignore_errors=True)

    def mark_best(self, losses):
        """Link `checkpoint-best` to the checkpoint with the lowest loss.

        Args:
            losses: dict of int to float, the evaluation loss by step.
        """
        there = [step for step in self.steps() if step in losses]
        if not there:
            return
        link = self.directory / ".best"
        link.unlink(missing_ok=True)
        link.symlink_to(self.path(min(there, key=losses.get)).name)
        os.replace(link, self.directory / BEST)

    def _remove_old(self):
        if self.limit is None:
            return
        best = self.directory / BEST
        kept = {self.path(step).name for step in self.steps()[-self.limit :]} | {os.path.basename(best.resolve())}
        for step in self.steps():
            if self.path(step).name not in kept:
                shutil.rmtree(self.path(step))


def _flush(directory):
    # Without it, a machine that loses its power could keep the name and lose the contents.
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _is_storage_error(error):
    # PyTorch reports a full disk by RuntimeErrors, in the words of C++.
    torch_says = ("iostream error", "failed writing file", "unexpected pos")
    return isinstance(error, (OSError, SafetensorError)) or any(words in str(error) for words in torch_says)


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
        print("stopping after this step, with a checkpoint", flush=True)
