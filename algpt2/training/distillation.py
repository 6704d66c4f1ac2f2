"""The teacher of a run: a checkpoint whose distribution the model learns beside the text (Hinton et al., 2015)."""

import contextlib
import hashlib
import json

import numpy as np

from algpt2.checkpoints.checkpoint import opened
from algpt2.configuration import DROPOUTS, ALGPT2Config
from algpt2.data.tokenizer import SPECIAL_TOKEN_FIELDS
from algpt2.errors import InputError
from algpt2.training.loss import DISTILL_WEIGHT, TEMPERATURE

# The fields of a configuration that say nothing of what a trained model computes of given tokens.
NOT_OF_A_TEACHER = {
    *(*DROPOUTS, "initializer_range", "use_cache"),
    *SPECIAL_TOKEN_FIELDS,
}


def open_teacher(arguments):
    """The checkpoint of `--teacher`, whose weights are not read yet; the arguments that go with it are settled.

    Args:
        arguments: `argparse.Namespace` of `algpt2.training.arguments.train_parser`.

    Returns:
        `algpt2.checkpoints.checkpoint.Checkpoint` of a language model; `None` without a teacher.

    Raises:
        InputError: if it is missing or damaged, or no language model.
    """
    if not arguments.teacher:
        return None
    with of_teacher(arguments):
        checkpoint = opened(arguments.teacher, arguments.framework)
        checkpoint.require_language_model()
    # What the run has, for whoever reads its record.
    arguments.distill_weight = arguments.distill_weight or DISTILL_WEIGHT
    arguments.temperature = arguments.temperature or TEMPERATURE
    return checkpoint.without_heads()


def read_teacher(checkpoint, arguments, config, tokenizer, length):
    """The configuration and the weights of a teacher, each read once, if a model can learn from it.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint` of `open_teacher`.
        arguments: `argparse.Namespace` of `algpt2.training.arguments.train_parser`; its `teacher_checksum` is set.
        config: `ALGPT2Config` of the model.
        tokenizer: `transformers.PreTrainedTokenizerFast` of the model.
        length: int. The tokens of a block.

    Returns:
        tuple of `ALGPT2Config` and dict of str to numpy array, canonical.

    Raises:
        InputError: if the tokenizer or the size does not fit, or a run that goes on began with another teacher.
    """
    with of_teacher(arguments):
        name, teacher = arguments.teacher, checkpoint.config
        difference = _difference(checkpoint.require_tokenizer(), tokenizer)
        if difference:
            raise InputError(
                f"{name}: its tokenizer is another one: {difference}; "
                f"a new model takes the teacher's by --tokenizer {name}"
            )
        if teacher.vocab_size != config.vocab_size:
            raise InputError(
                f"{name}: has vocab_size {teacher.vocab_size}, the model {config.vocab_size}; "
                "the same is needed; start from a model, or take a teacher, of that size"
            )
        if teacher.n_positions < length:
            raise InputError(
                f"{name}: has n_positions {teacher.n_positions}, the blocks {length} tokens; "
                f"give --length {teacher.n_positions} at most"
            )
        weights = checkpoint.read_weights()
        checksum = _checksum(teacher, weights)
        if arguments.teacher_checksum not in (None, checksum):
            raise InputError(f"{name}: is not what it was when the run began")
    arguments.teacher_checksum = checksum
    return teacher, weights


@contextlib.contextmanager
def of_teacher(arguments):
    """Errors that name the argument, and say what a run that goes on needs."""
    try:
        yield
    except InputError as error:
        advice = "; the run goes on with the teacher that it began with: put it back, or start a new run"
        raise InputError(f"--teacher {error}{advice if arguments.resume else ''}") from error


def _difference(tokenizer, other):
    """What keeps the ids of two tokenizers, of the teacher and of the model, from meaning the same; `None` if they do.

    Roles of tokens and what is put around a text may differ: the teacher reads the ids of the model.
    """
    tokens, others = ({id: token for token, id in one.get_vocab().items()} for one in (tokenizer, other))
    if tokens != others:
        first = min(id for id in tokens.keys() | others.keys() if tokens.get(id) != others.get(id))
        return f"id {first} is {tokens.get(first)!r} there, {others.get(first)!r} in the model's"
    state, of_other = (json.loads(one.backend_tokenizer.to_str()) for one in (tokenizer, other))
    # Where tokens are in a text changes none of them.
    splitter, of_others = ({**(one["pre_tokenizer"] or {}), "trim_offsets": None} for one in (state, of_other))
    if (state["normalizer"], splitter) != (of_other["normalizer"], of_others):
        return "it splits texts otherwise"
    if state["model"].get("merges") != of_other["model"].get("merges"):
        return "it merges otherwise"
    return None


def _checksum(config, weights):
    """A hash of what a model computes, the same for all files and names that its weights may have."""
    # Without defaults, so that a field that is new in a later version changes nothing.
    defaults, names = ALGPT2Config(), sorted(ALGPT2Config.__annotations__.keys() - NOT_OF_A_TEACHER)
    fields = {name: getattr(config, name) for name in names if getattr(config, name) != getattr(defaults, name)}
    result = hashlib.sha256(json.dumps(fields).encode())
    for name in sorted(weights):
        result.update(name.encode())
        result.update(np.ascontiguousarray(weights[name]).reshape(-1).view("uint8"))
    return result.hexdigest()
