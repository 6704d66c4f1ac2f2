"""What a run directory says of its run to those who use its model: which checkpoint to take, and its held-out text."""

import sys
from dataclasses import dataclass
from pathlib import Path

from algpt2.checkpoints.checkpoint import Checkpoint, open_checkpoint
from algpt2.checkpoints.directories import find_checkpoint
from algpt2.checkpoints.formats import find_weights
from algpt2.data.corpus import TextOptions, read_corpus
from algpt2.errors import InputError
from algpt2.files.reading import read_json
from algpt2.training.run_directory import ARGUMENTS_FILE, BEST, CHECKPOINT, Checkpoints

# The arguments that say what a run is evaluated on, with the types that a record may have.
TEXT_ARGUMENTS = {
    "dataset": str,
    "validation": str | None,
    "text_column": str | None,
    "streaming": bool,
    "detokenize": str | None,
    "control_code": str | None,
    "eval_protocol": str,
    "length": int,
    "text": str | None,
}


@dataclass(frozen=True)
class RecordedRun:
    """The record of a run.

    Args:
        directory: `Path` of the run.
        arguments: dict of the `TEXT_ARGUMENTS`.
    """

    directory: Path
    arguments: dict

    @property
    def text_name(self):
        """str: what messages call the held-out text."""
        dataset, validation = self.arguments["dataset"], self.arguments["validation"]
        return validation if validation is not None else f"the held-out part of {dataset}"

    def documents(self):
        """The held-out text, as `algpt2.data.corpus.Documents`; a text that has changed is reported.

        Raises:
            InputError: if it is not there any more.
        """
        names = ("text_column", "streaming", "detokenize", "control_code")
        options = TextOptions(**{name: self.arguments[name] for name in names})
        try:
            documents = read_corpus(self.arguments["dataset"], self.arguments["validation"], options).validation
            fingerprint = documents.fingerprint()
        except InputError as error:
            raise InputError(f"the text of {self.directory}: {error}; or give a --dataset") from error
        if not (self.arguments["text"] or fingerprint).endswith(fingerprint):
            print(f"{self.text_name}: is not what it was when the run began", file=sys.stderr)
        return documents


def open_newest(name_or_path, framework):
    """The checkpoint of a language model; of a run that is not finished its newest one, which standard error tells.

    Args:
        name_or_path: str or path. A directory, or the id of a hub repository.
        framework: str, as in `algpt2.checkpoints.checkpoint.open_checkpoint`.

    Returns:
        `algpt2.checkpoints.checkpoint.Checkpoint`.

    Raises:
        InputError: if there is none, it cannot be read, or is of another head.
    """
    if isinstance(name_or_path, Checkpoint):
        return name_or_path
    directory = find_checkpoint(name_or_path)
    if (directory / ARGUMENTS_FILE).is_file() and not find_weights(directory):
        checkpoints = Checkpoints(directory)
        if not checkpoints.latest():
            raise InputError(f"{directory}: the run is not finished, and has no checkpoint yet (--save-steps)")
        newest = checkpoints.path(checkpoints.latest())
        print(f"{directory}: the run is not finished; taking its newest checkpoint, {newest.name}", file=sys.stderr)
        directory = newest
    checkpoint = open_checkpoint(directory, framework)
    checkpoint.require_language_model()
    return checkpoint


def find_run(directory):
    """The run that a directory is of, or a checkpoint of.

    Args:
        directory: path.

    Returns:
        `RecordedRun`; `None` if there is none.

    Raises:
        InputError: if its record is damaged.
    """
    directory = Path(directory)
    if CHECKPOINT.fullmatch(directory.name) or directory.name == BEST:
        directory = directory.parent
    path = directory / ARGUMENTS_FILE
    if not path.is_file():
        return None
    recorded = read_json(path)
    arguments = {name: recorded.get(name) for name in TEXT_ARGUMENTS}
    # Records of early versions lack some.
    arguments["streaming"] = arguments["streaming"] or False
    for name, kind in TEXT_ARGUMENTS.items():
        if not isinstance(arguments[name], kind):
            raise InputError(f"{path}: {name} is {arguments[name]!r}; give a --dataset, --length and --protocol")
    return RecordedRun(directory, arguments)
