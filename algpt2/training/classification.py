"""Runs that fine-tune a classifier of texts: their labelled texts, their samples and what they measure."""

import csv
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from algpt2.data.encoding import encode_batch, start_ids
from algpt2.data.files import hash_file, json_lines, row_text
from algpt2.errors import InputError
from algpt2.generation.sampling import log_softmax
from algpt2.training.arguments import flag, settle_text
from algpt2.training.run import Run, rows_at_once

CSV_ENDINGS, JSON_LINES_ENDINGS = (".csv", ".tsv"), (".jsonl", ".ndjson")
# Without a file of their own, the rows that are held out: each of this many, so that no order of the rows matters.
HELD_OUT_EVERY = 20
# What is of language models alone, with the values that say nothing.
OF_LANGUAGE_MODELS = {
    **dict.fromkeys(("sop", "streaming"), False),
    **dict.fromkeys(("packing", "eval_protocol"), "stream"),
    **dict.fromkeys(("vocab_size", "detokenize", "control_code", "teacher", "random_depth", "quantize"), None),
}


@dataclass
class LabelledTexts:
    """Texts of the classes that they belong to, as rows of tokens padded on the right.

    Args:
        ids: list of list of int, the tokens of each text, none longer than `length`.
        classes: int array (n,).
        length: int.
        pad_token_id: int.
    """

    ids: list
    classes: np.ndarray
    length: int
    pad_token_id: int

    def __len__(self):
        return len(self.ids)

    def rows(self, indices):
        """The tokens of some texts and their mask, int32 (n, length), 0 for padding.

        Example:
            >>> texts = LabelledTexts([[4, 5], [6]], np.array([1, 0]), length=3, pad_token_id=9)
            >>> texts.rows([0, 1])[0]
            array([[4, 5, 9],
                   [6, 9, 9]], dtype=int32)
        """
        ids = np.full((len(indices), self.length), self.pad_token_id, dtype=np.int32)
        mask = np.zeros_like(ids)
        for row, index in enumerate(indices):
            tokens = self.ids[index]
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
        return ids, mask


class ClassificationRun(Run):
    """A `Run` that trains a classifier of texts; its blocks and its validation are `LabelledTexts`."""

    measures_perplexity = False

    def samples(self, indices):
        """Some training samples.

        Args:
            indices: int array (n,), places in the order of training.

        Returns:
            dict of int32 arrays: `input_ids` and `attention_mask` (n, length), `labels` (n,).
        """
        places = self.order[indices]
        ids, mask = self.blocks.rows(places)
        return {"input_ids": ids, "attention_mask": mask, "labels": self.blocks.classes[places].astype(np.int32)}


@dataclass(frozen=True)
class ClassEvaluation:
    """What was measured on held-out texts.

    Args:
        loss: float. The mean negative log-likelihood of the class of a text, in nats.
        accuracy: float. The share of texts whose class has the largest logit.
        f1: float. The mean over classes of the harmonic mean of precision and recall.
    """

    loss: float
    accuracy: float
    f1: float

    @property
    def values(self):
        """dict of str to float: what the history records besides the loss."""
        return {"eval_accuracy": self.accuracy, "eval_f1": self.f1}


def evaluate_classes(run, class_logits):
    """Evaluate on the held-out texts of a run.

    Args:
        run: `ClassificationRun`.
        class_logits: function from ids and mask, int32 (batch, length), to logits, float (batch, classes).

    Returns:
        `ClassEvaluation`.
    """
    texts, batch_size = run.validation, rows_at_once(run.arguments)
    logits = []
    for start in range(0, len(texts), batch_size):
        # Every batch has the same size, so that a compiled function is compiled once.
        places = np.arange(start, start + batch_size)
        logits.append(class_logits(*texts.rows(np.minimum(places, len(texts) - 1))))
    return measure_classes(np.concatenate(logits)[: len(texts)], texts.classes)


def measure_classes(logits, classes):
    """The measures of some predictions.

    Args:
        logits: float (n, classes).
        classes: int (n,), the right ones.

    Returns:
        `ClassEvaluation`.

    Example:
        >>> measure_classes(np.array([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), np.array([0, 1, 1])).accuracy
        0.6666666666666666
    """
    logits = np.asarray(logits, dtype=np.float64)
    loss = -log_softmax(logits)[np.arange(len(classes)), classes].mean()
    predicted = logits.argmax(axis=-1)
    scores = []
    # A class that is neither there nor predicted has no score.
    for each in np.union1d(classes, predicted):
        right = np.sum((classes == each) & (predicted == each))
        scores.append(2 * right / (np.sum(classes == each) + np.sum(predicted == each)))
    return ClassEvaluation(float(loss), float(np.mean(predicted == classes)), float(np.mean(scores)))


def check_arguments(arguments):
    """Raise an InputError for arguments that a classifier cannot have.

    Args:
        arguments: `argparse.Namespace` of `algpt2.training.command_line.train_parser`.
    """
    if not arguments.init_from:
        raise InputError("--task classify fine-tunes a checkpoint; name it by --init-from")
    for name, default in OF_LANGUAGE_MODELS.items():
        if getattr(arguments, name) != default:
            raise InputError(f"{flag(name)} is for language models; leave it out with --task classify")


def read_labelled(arguments, config, tokenizer):
    """The labelled texts that the arguments name.

    Args:
        arguments: `argparse.Namespace`; `text` gets a hash of the files.
        config: `ALGPT2Config`.
        tokenizer: `transformers.PreTrainedTokenizerFast`; gets a pad token if it has none.

    Returns:
        tuple of the names of the classes, a list of str; and of `LabelledTexts`, to train on and held out.

    Raises:
        InputError: if a file cannot be read, lacks a column, holds an empty text, or a label that no text to train on
            has.
    """
    files = [Path(name) for name in (arguments.dataset, arguments.validation) if name]
    parts = [_read_rows(path, arguments.text_column or "text", arguments.label_column) for path in files]
    text = hashlib.blake2b("".join(map(hash_file, files)).encode(), digest_size=32).hexdigest()
    settle_text(arguments, text)
    if len(parts) == 1:
        rows = parts[0]
        held_out = rows[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
        if not held_out:
            raise InputError(
                f"{files[0]}: has {len(rows)} rows; {HELD_OUT_EVERY} are needed to hold out each {HELD_OUT_EVERY}th, "
                "or name others by --validation"
            )
        parts = [[row for number, row in enumerate(rows, 1) if number % HELD_OUT_EVERY], held_out]
    names = sorted({label for _, label, _ in parts[0]}, key=_order)
    if len(names) < 2:
        raise InputError(f"{files[0]}: all texts to train on have the label {names[0]!r}; expected at least two labels")
    for _, label, place in parts[1]:
        if label not in names:
            raise InputError(f"{place}: no text to train on has the label {label!r}; they have {', '.join(names)}")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    most = arguments.length or config.n_positions
    start = start_ids(tokenizer)
    ids = []
    for part in parts:
        tokens = encode_batch(tokenizer, [text for text, _, _ in part])
        ids.append([[*start, *row][:most] for row in tokens])
        for row, (_, _, place) in zip(ids[-1], part, strict=True):
            if not row:
                raise InputError(f"{place}: the tokenizer has no token for this text")
    length = arguments.length or max(2, *(len(row) for part in ids for row in part))
    classes = [np.array([names.index(label) for _, label, _ in part]) for part in parts]
    pad = tokenizer.pad_token_id
    return names, *(LabelledTexts(*part, length, pad) for part in zip(ids, classes, strict=True))


def _order(label):
    """Numbers by their value, before other labels."""
    try:
        return (0, float(label), label)
    except ValueError:
        return (1, 0.0, label)


def _read_rows(path, text_column, label_column):
    """The texts of a file, their labels and their places, a list of tuples of str."""
    ending = path.suffix.lower()
    if ending not in (*CSV_ENDINGS, *JSON_LINES_ENDINGS):
        raise InputError(f"{path}: --task classify reads {', '.join((*CSV_ENDINGS, *JSON_LINES_ENDINGS))}")
    read = _read_csv if ending in CSV_ENDINGS else json_lines
    rows = [(_text(row, text_column, place), _label(row, label_column, place), place) for row, place in read(path)]
    if not rows:
        raise InputError(f"{path}: holds no rows")
    return rows


def _read_csv(path):
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
            for row in reader:
                yield row, f"{path}, line {reader.line_num}"
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    except csv.Error as error:
        raise InputError(f"{path}: not readable as CSV ({error})") from error


def _text(row, column, place):
    text = row_text({str(name): value for name, value in row.items()}, column, place)
    if not text.strip():
        raise InputError(f"{place}: the text is empty; leave the row out")
    return text


def _label(row, column, place):
    if column not in row:
        raise InputError(f"{place}: no column {column!r}; give --label-column, one of {', '.join(map(str, row))}")
    label = row[column]
    if not isinstance(label, str | int):
        raise InputError(f"{place}: column {column!r} holds {type(label).__name__}, expected a text or an integer")
    if not str(label).strip():
        raise InputError(f"{place}: the label is empty; leave the row out")
    return str(label)
