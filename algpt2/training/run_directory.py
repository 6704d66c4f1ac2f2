"""The directory of a run: how it is made and replaced, and the numbered checkpoints in it."""

import contextlib
import json
import os
import re
import shutil
from pathlib import Path

from algpt2.cli import flag
from algpt2.errors import InputError
from algpt2.files.atomic import directory_replaced, put_in_place, write_text, writing
from algpt2.files.disk import WriteError, storage_error
from algpt2.files.names import foreign_file
from algpt2.files.reading import require_ordinary
from algpt2.training.checksums import check_checksums, write_checksums

ARGUMENTS_FILE, HISTORY_FILE, FIGURE_FILE = "arguments.json", "history.jsonl", "perplexity.png"

CHECKPOINT = re.compile(r"checkpoint-([1-9][0-9]{0,17})")
BEST = "checkpoint-best"
# Where a checkpoint is until it is whole.
PARTIAL = ".partial"
# What a run has beside the files of a checkpoint, as patterns; a star matches also what has slashes.
LOG_FILES = ("tensorboard/*", "wandb/*", "runs/*")
OWN_FILES = (ARGUMENTS_FILE, HISTORY_FILE, FIGURE_FILE, "checkpoint-*", f"{PARTIAL}/*", ".algpt2-*", *LOG_FILES)


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
        paths = [path for path in self.directory.glob("checkpoint-*") if path.is_dir()]
        return sorted(int(match[1]) for match in (CHECKPOINT.fullmatch(path.name) for path in paths) if match)

    def latest(self):
        """int: the step of the newest checkpoint, 0 if there is none."""
        return max(self.steps(), default=0)

    def best(self, losses):
        """The step of the checkpoint with the lowest loss.

        Args:
            losses: dict of int to float, the evaluation loss by step.

        Returns:
            int; `None` if no checkpoint was evaluated.
        """
        return min((step for step in self.steps() if step in losses), key=losses.get, default=None)

    def find(self, name):
        """The step of a checkpoint.

        Args:
            name: str, as in `checkpoint-200` or `checkpoint-best`, or path of it; `True` means the newest.

        Returns:
            int; 0 if there is none.

        Raises:
            InputError: if the run has no checkpoint of this name.
        """
        if name is True:
            return self.latest()
        for path in (self.directory / name, Path(name)):
            # The best checkpoint is a link.
            path = path.resolve() if path.name == BEST else path
            match = CHECKPOINT.fullmatch(path.name)
            if match and path.is_dir() and path.parent.resolve() == self.directory.resolve():
                return int(match[1])
        there = ", ".join(self.path(step).name for step in self.steps()) or "none"
        raise InputError(f"{name}: is no checkpoint of {self.directory}; it has {there}")

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
                write_checksums(temporary)
                put_in_place(temporary, target)
                self._link_best(losses)
                self._remove_old()
            wait()
        except Exception as error:
            cause = storage_error(error)
            if cause is None:
                raise
            kept = f"checkpoint-{self.latest()} is whole" if self.latest() else "there is no earlier one"
            raise WriteError(
                f"{target}: cannot be written ({cause}); {kept}; mend that, then go on with --resume"
            ) from cause
        finally:
            if is_first:
                shutil.rmtree(partial, ignore_errors=True)

    def go_back(self, step, losses):
        """Remove the checkpoints after a step, the newest first, and link the best of those that stay.

        Args:
            step: int.
            losses: dict of int to float, the evaluation loss by step.
        """
        (self.directory / PARTIAL).mkdir(exist_ok=True)
        for later in sorted(self.steps(), reverse=True):
            if later > step:
                self._remove(self.path(later))
        self._link_best(losses)
        shutil.rmtree(self.directory / PARTIAL, ignore_errors=True)

    def _link_best(self, losses):
        best = self.best(losses)
        if best is not None:
            link = self.directory / PARTIAL / BEST
            link.symlink_to(self.path(best).name)
            os.replace(link, self.directory / BEST)
        else:
            (self.directory / BEST).unlink(missing_ok=True)

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


def require_undamaged(directory):
    """Raise an InputError if a checkpoint has files that are not as they were written, or pipes and devices.

    Args:
        directory: path of the checkpoint.
    """
    try:
        check_checksums(directory)
        for path in Path(directory).iterdir():
            if not path.is_dir():
                # Libraries would wait for the other end of a pipe.
                require_ordinary(path)
    except InputError as error:
        raise damaged_checkpoint(directory, error) from error


def damaged_checkpoint(directory, error):
    """The error of a checkpoint that a run cannot go on from.

    Args:
        directory: path of the checkpoint.
        error: exception. What is wrong with it.

    Returns:
        `InputError`.
    """
    return InputError(f"{directory}: damaged ({error}); remove it, and --resume goes on from the newest of the others")


def require_free(directory, flag, sources, overwrite, hint):
    """Raise an InputError unless a new run directory may take a place.

    Args:
        directory: `Path`.
        flag: str. The argument that names the directory.
        sources: dict of str to path or `None`. What must not be replaced, by what reads it.
        overwrite: bool. Whether a run directory that is there, and holds nothing else, may be replaced.
        hint: str. What to do about one that may not.
    """
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return
    if Path.cwd().is_relative_to(directory.resolve()):
        raise InputError(f"{directory}: is the current directory or holds it; give another {flag}")
    if not (directory / ARGUMENTS_FILE).is_file():
        raise InputError(f"{directory}: is there already and is not a run directory; give another {flag}")
    for reader, name in sources.items():
        if Path(name or "").resolve().is_relative_to(directory.resolve()):
            raise InputError(f"{directory}: holds what {reader} reads; give another {flag}")
    if not overwrite:
        raise InputError(f"{directory}: is there already; {hint}")
    # They import libraries, which the help of the command line need not wait for.
    from algpt2.checkpoints.directories import CHECKPOINT_FILES

    if name := foreign_file(directory, (*OWN_FILES, *CHECKPOINT_FILES)):
        raise InputError(f"{directory}: holds {name}, which is no part of a run; move it, or give another {flag}")


def run_sources(arguments):
    """What a run reads, as `require_free` takes it.

    Args:
        arguments: `argparse.Namespace` of `algpt2.training.arguments.train_parser`.

    Returns:
        dict of str to str or `None`.
    """
    names = ("init_from", "teacher", "tokenizer", "dataset", "validation", "config")
    return {flag(name): getattr(arguments, name) for name in names}


@contextlib.contextmanager
def new_run_directory(directory, arguments, config, tokenizer):
    """A run directory to write more into, which takes its name, and the place of another, only if the block succeeds.

    All at once, so that a run that is cut off here can still be resumed or started anew.

    Args:
        directory: `Path`.
        arguments: `argparse.Namespace` of `algpt2.training.arguments.train_parser`.
        config: `ALGPT2Config`.
        tokenizer: `transformers.PreTrainedTokenizerFast`.

    Yields:
        `Path`: the directory, elsewhere; it holds the arguments, the configuration and the tokenizer.

    Raises:
        InputError: if it cannot be written; what was there stays.
    """
    # It imports a framework, which the help of the command line need not wait for.
    from algpt2.data.tokenizer import save_tokenizer

    with directory_replaced(directory) as new:
        record_arguments(new, arguments)
        config.save_pretrained(new)
        save_tokenizer(tokenizer, new)
        yield new


def record_arguments(directory, arguments):
    """Write the arguments of a run, which a resumed one takes.

    Args:
        directory: `Path` of the run.
        arguments: `argparse.Namespace` of `algpt2.training.arguments.train_parser`.
    """
    write_text(directory / ARGUMENTS_FILE, json.dumps({**vars(arguments), "resume": False}, indent=2) + "\n")


@contextlib.contextmanager
def writing_run(directory):
    """The right to write a run, which one process at a time has; what killed processes have left of it is removed.

    Args:
        directory: path, whether it is there or not.

    Raises:
        InputError: if another process is writing it, or it cannot be written.
    """
    with writing(directory) as path:
        shutil.rmtree(path / PARTIAL, ignore_errors=True)
        yield
