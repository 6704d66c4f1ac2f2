"""Data sets of the Hugging Face hub as documents, through the `datasets` library."""

import contextlib
import json
import re
from dataclasses import dataclass

from algpt2.data import HELD_OUT_PART
from algpt2.data.files import ROWS, row_text
from algpt2.data.hashing import json_hash
from algpt2.errors import InputError, reason

NAME = re.compile(r"[\w.-]+(/[\w.-]+){0,2}")
# What tells the two kinds of WikiText apart is the configuration alone.
WIKITEXT = "Salesforce/wikitext"
WIKITEXT_CONFIGURATION = re.compile(r"wikitext-(2|103)(-raw)?-v1")
# A streamed data set does not say how many documents it has.
STREAMED_HELD_OUT = 1000
PROBE_SECONDS = 5


def is_name(name):
    """Whether a data set of the hub may be called so: `name`, `name/config`, `owner/name` or `owner/name/config`."""
    return bool(NAME.fullmatch(name)) and not name.startswith((".", "-"))


def candidates(name):
    """The repositories and configurations that a name may mean, the likelier one first.

    Args:
        name: str.

    Returns:
        list of tuple of str and (str or `None`).

    Example:
        >>> candidates("wikitext-2-v1") == candidates("wikitext/wikitext-2-v1")
        True
        >>> candidates("cnn_dailymail/3.0.0")
        [('cnn_dailymail/3.0.0', None), ('cnn_dailymail', '3.0.0')]
    """
    if WIKITEXT_CONFIGURATION.fullmatch(name):
        return [(WIKITEXT, name)]
    parts = name.split("/")
    if parts[0] == "wikitext":
        return [(WIKITEXT, "/".join(parts[1:]) or None)]
    if len(parts) == 3:
        return [("/".join(parts[:2]), parts[2])]
    return [(name, None), tuple(parts)] if len(parts) == 2 else [(name, None)]


@dataclass(frozen=True)
class Part:
    """Some documents of a data set.

    Args:
        name: str. What messages call it.
        rows: `datasets.Dataset` or `datasets.IterableDataset`.
        column: str. The column that holds the text.
        joined: bool. Whether all rows make one document.
        identity: str. What a streamed data set is known by.
    """

    name: str
    rows: object
    column: str
    joined: bool
    identity: str

    @property
    def size(self):
        """int: the bytes of the text, about; `None` if nobody knows."""
        return self.rows.data.nbytes if hasattr(self.rows, "data") else None

    def documents(self):
        """The documents, each an iterable of str."""
        texts = self._texts()
        if self.joined:
            yield (text if text.endswith("\n") else text + "\n" for text in texts)
        else:
            for text in texts:
                if text.strip():
                    yield (text,)

    def fingerprint(self):
        """A str that differs where the text differs."""
        rows = getattr(self.rows, "_fingerprint", None) or self.identity
        return json_hash(rows, self.column, self.joined)

    def _texts(self):
        rows, number = self.rows, 0
        # Other columns need not be decoded; one that is not there is reported from a row.
        if rows.column_names and self.column in rows.column_names:
            rows = rows.select_columns([self.column])
        batches = iter(rows.iter(batch_size=ROWS))
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:  # datasets raises errors of many libraries
                raise InputError(f"{self.name}: reading failed after row {number} ({reason(error)})") from error
            if batch is None:
                return
            for values in zip(*batch.values(), strict=True):
                number += 1
                yield row_text(dict(zip(batch, values, strict=True)), self.column, f"{self.name}, row {number}")


class Dataset:
    """A data set of the hub.

    Args:
        name: str. `name`, `name/config`, `owner/name`, `owner/name/config`, or the name of a configuration of WikiText
            on its own, such as `wikitext-2-v1`.
        column: str. The column that holds the text.
        streaming: bool. Whether the data is read as it is used.

    Raises:
        InputError: if there is no such data set or configuration, or the hub cannot be reached.
    """

    def __init__(self, name, column="text", streaming=False):
        self.name, self.column, self.streaming = name, column, streaming
        self.repository, self.configuration, self.splits = _load(name, streaming)

    @property
    def train(self):
        """Part: the split train, without what is held out of it."""
        return self.split("train") if self._held_out_split else self._divided_train()[0]

    @property
    def held_out(self):
        """Part: the split validation or test; if there is neither, a part of the split train."""
        return self.split(self._held_out_split) if self._held_out_split else self._divided_train()[1]

    @property
    def _held_out_split(self):
        return next((name for name in ("validation", "test") if name in self.splits), None)

    def split(self, name):
        """Part: a whole split."""
        if name not in self.splits:
            raise InputError(f"{self.name}: has no split {name!r}; it has {', '.join(self.splits)}")
        return self._part(name, self.splits[name])

    def _part(self, split, rows, which="all"):
        joined = self.repository.split("/")[-1] == "wikitext"
        identity = [self.repository, self.configuration, split, which, self._revision() if self.streaming else None]
        return Part(f"{self.name}, split {split}", rows, self.column, joined, json.dumps(identity))

    def _divided_train(self):
        rows = self.split("train").rows
        if self.streaming:
            train, held_out = rows.skip(STREAMED_HELD_OUT), rows.take(STREAMED_HELD_OUT)
        else:
            count = len(rows) - max(1, len(rows) // HELD_OUT_PART)
            train, held_out = rows.select(range(count)), rows.select(range(count, len(rows)))
        return self._part("train", train, "the rest"), self._part("train", held_out, "held out")

    def _revision(self):
        from huggingface_hub import HfApi

        try:
            return HfApi().dataset_info(self.repository, timeout=PROBE_SECONDS).sha
        except Exception:  # of whichever HTTP library the hub's client uses
            return None


def _load(name, streaming):
    """The repository, the configuration and the splits of the first candidate that there is."""
    import datasets

    problems = []
    with _offline_if_unreachable():
        for repository, configuration in candidates(name):
            try:
                splits = datasets.load_dataset(repository, configuration, streaming=streaming)
                return repository, configuration, dict(splits)
            except Exception as error:  # datasets raises errors of many libraries
                problems.append(error)
    unreachable = next((error for error in problems if isinstance(error, ConnectionError)), None)
    if unreachable:
        raise InputError(
            f"{name}: no such file, and the Hugging Face hub cannot be reached ({unreachable}); give local files: "
            f"where there is a network, `hf download --repo-type dataset {candidates(name)[0][0]} --local-dir DIR`, "
            "then here --dataset and --validation with the files of the splits in DIR"
        ) from unreachable
    if all(isinstance(error, datasets.exceptions.DatasetNotFoundError) for error in problems):
        raise InputError(
            f"{name}: no such file, and no such data set on the Hugging Face hub; "
            "if it is private or gated, log in with `hf auth login`"
        ) from problems[0]
    problem = next(e for e in problems if not isinstance(e, datasets.exceptions.DatasetNotFoundError))
    raise InputError(f"{name}: the data set cannot be loaded ({reason(problem)})") from problem


@contextlib.contextmanager
def _offline_if_unreachable():
    """Use what is on this machine if the hub does not answer at once, instead of asking again and again."""
    import datasets
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        yield
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception:  # of whichever HTTP library the hub's client uses
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = False
