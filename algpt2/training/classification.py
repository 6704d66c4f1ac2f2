"""Runs that fine-tune a classifier of texts."""

import hashlib
from pathlib import Path

import numpy as np

from algpt2.cli import flag
from algpt2.data import HELD_OUT_PART
from algpt2.data.encoding import encode_batch, start_ids
from algpt2.data.files import hash_file
from algpt2.data.labelled_texts import LabelledTexts, labelled_rows
from algpt2.errors import InputError
from algpt2.evaluation.classes import measure_classes
from algpt2.training.given_arguments import settle_text
from algpt2.training.run import Run, rows_at_once

# What is of language models alone, with the values that say nothing.
OF_LANGUAGE_MODELS = {
    **dict.fromkeys(("sop", "streaming"), False),
    **dict.fromkeys(("packing", "eval_protocol"), "stream"),
    **dict.fromkeys(("vocab_size", "detokenize", "control_code", "teacher", "random_depth", "quantize"), None),
}


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


def evaluate_classes(run, class_logits):
    """Evaluate on the held-out texts of a run.

    Args:
        run: `ClassificationRun`.
        class_logits: function from ids and mask, int32 (batch, length), to logits, float (batch, classes).

    Returns:
        `algpt2.evaluation.classes.ClassEvaluation`.
    """
    texts, batch_size = run.validation, rows_at_once(run.arguments)
    logits = []
    for start in range(0, len(texts), batch_size):
        # Every batch has the same size, so that a compiled function is compiled once.
        places = np.arange(start, start + batch_size)
        logits.append(class_logits(*texts.rows(np.minimum(places, len(texts) - 1))))
    return measure_classes(np.concatenate(logits)[: len(texts)], texts.classes)


def check_arguments(arguments):
    """Raise an InputError for arguments that a classifier cannot have.

    Args:
        arguments: `argparse.Namespace` of `algpt2.training.arguments.train_parser`.
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
    parts = [labelled_rows(path, arguments.text_column or "text", arguments.label_column or "label") for path in files]
    text = hashlib.blake2b("".join(map(hash_file, files)).encode(), digest_size=32).hexdigest()
    settle_text(arguments, text)
    if len(parts) == 1:
        rows = parts[0]
        # Each of so many, so that no order of the rows matters.
        held_out = rows[HELD_OUT_PART - 1 :: HELD_OUT_PART]
        if not held_out:
            raise InputError(
                f"{files[0]}: has {len(rows)} rows; {HELD_OUT_PART} are needed to hold out each {HELD_OUT_PART}th, "
                "or name others by --validation"
            )
        parts = [[row for number, row in enumerate(rows, 1) if number % HELD_OUT_PART], held_out]
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
