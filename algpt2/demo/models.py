"""The models of a demo, each in its framework, behind functions that do not tell which it is."""

import contextlib
import queue
import threading

import numpy as np

from algpt2.checkpoints.checkpoint import opened
from algpt2.checkpoints.weights import parameter_count
from algpt2.data.encoding import encode
from algpt2.errors import InputError
from algpt2.files.names import labels
from algpt2.generation.continuation import continue_text, prepare_prompts
from algpt2.imports.frameworks import FRAMEWORKS, import_module, installed_frameworks

# More would take long to draw.
MOST_DEPTHS = 8
PADDED = 64


class DemoModel:
    """A checkpoint that continues texts and tells the losses of tokens.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint` with a tokenizer.
        name: str. What the page calls it.
        framework: str, one of `algpt2.imports.frameworks.FRAMEWORKS`.

    Raises:
        InputError: if the framework is not installed, or cannot load it.
    """

    def __init__(self, checkpoint, name, framework):
        self.checkpoint, self.name = checkpoint, name
        self.tokenizer, self.config = checkpoint.require_tokenizer(), checkpoint.config
        package = FRAMEWORKS[framework].package
        self._evaluation = import_module(f"{package}.evaluation")
        self._generation = import_module(f"{package}.generation")
        self.model = self._evaluation.open_model(checkpoint)
        self._losses = self._evaluation.token_loss_function(self.model)
        blocks = "1 block" if self.config.n_block == 1 else f"{self.config.n_block} blocks"
        count = parameter_count(self.config)
        self.summary = f"{count:,} parameters, depth {self.config.n_layer} of {blocks}, {FRAMEWORKS[framework].title}"

    def continue_text(self, prompt, sampling, max_new_tokens):
        """Continue a text as `algpt2.generation.continuation.continue_text`.

        Args:
            prompt: str.
            sampling: `algpt2.generation.continuation.Sampling`.
            max_new_tokens: int.

        Yields:
            str: the parts of the text, with the prompt first.

        Raises:
            InputError: if the prompt has no token.
        """
        prepare_prompts(self.checkpoint, [prompt])
        sampling = sampling.among(self.config.vocab_size)
        stop = self.tokenizer.eos_token_id

        def produce(put):
            put(prompt)
            generate = self._generation.token_generator(self.model, sampling, stop)
            continue_text(generate, self.tokenizer, prompt, max_new_tokens, self.config.n_positions, put)

        return streamed(produce)

    def token_losses(self, text):
        """The loss of every token of a text but the first, in rows of at most `n_positions` tokens.

        Args:
            text: str.

        Returns:
            tuple of the ids, list of int, and the losses in nats, float (tokens,); that of the first token of each
            row, which nothing comes before, is NaN.

        Raises:
            InputError: if the text has fewer than two tokens.
        """
        ids = encode(self.tokenizer, text)
        return ids, _losses_in_rows(self._losses, ids, self.config.n_positions)

    def losses_at_depths(self, text):
        """The mean loss of a text at every depth that the blocks can be applied at; of many depths, some.

        Args:
            text: str.

        Returns:
            dict of int to float.
        """
        possible = {}
        for depth in range(1, 2 * self.config.n_layer + 1):
            with contextlib.suppress(InputError):
                possible[depth] = self.checkpoint.at_depth(depth)
        depths = list(possible)
        chosen = {depths[place] for place in np.linspace(0, len(depths) - 1, MOST_DEPTHS).round().astype(int)}
        depths = sorted(chosen | {self.config.n_layer})
        ids = encode(self.tokenizer, text)
        # Closed also after an error: at the end of it the model has its own depth again.
        with contextlib.closing(
            self._evaluation.losses_at_depths(self.model, [possible[depth] for depth in depths])
        ) as functions:
            return {
                depth: float(np.nanmean(_losses_in_rows(losses, ids, self.config.n_positions)))
                for depth, losses in zip(depths, functions, strict=True)
            }


def open_models(directories, framework=None):
    """The models of some checkpoints.

    Args:
        directories: list of str. Directories, or ids of hub repositories.
        framework: str, one of `algpt2.imports.frameworks.FRAMEWORKS`; by default that of the weights of each, if it
            is installed.

    Returns:
        list of `DemoModel`.

    Raises:
        InputError: if one cannot be read or loaded.
    """
    checkpoints = [opened(directory, framework or "pytorch") for directory in directories]
    for checkpoint in checkpoints:
        checkpoint.require_language_model()
    installed = installed_frameworks()
    models = []
    for checkpoint, name in zip(checkpoints, labels(directories), strict=True):
        stored = checkpoint.format.framework
        chosen = framework or (stored if stored in installed or not installed else installed[0])
        models.append(DemoModel(checkpoint, name, chosen))
    return models


def streamed(produce):
    """What a function hands on while it works, in a thread that ends when the iterator is closed.

    Args:
        produce: function of a function `put`, which takes one value.

    Yields:
        the values.

    Example:
        >>> list(streamed(lambda put: [put(number) for number in range(3)]))
        [0, 1, 2]
    """
    values, closed, end = queue.Queue(), threading.Event(), object()
    failures = []

    def put(value):
        if closed.is_set():
            raise _Closed
        values.put(value)

    def work():
        try:
            produce(put)
        except Exception as error:
            # A framework may wrap what `put` raises.
            if not closed.is_set():
                failures.append(error)
        values.put(end)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (value := values.get()) is not end:
            yield value
    finally:
        closed.set()
        thread.join()
    if failures:
        raise failures[0]


class _Closed(Exception):
    pass


def _losses_in_rows(function, ids, length):
    if len(ids) < 2:
        raise InputError("the text has no token to predict; give more text")
    losses = np.full(len(ids), np.nan)
    for start in range(0, len(ids), length):
        part = ids[start : start + length]
        # Padded on the right, which no token sees: TensorFlow compiles a function once for each length.
        row = np.zeros((1, min(length, -(-len(part) // PADDED) * PADDED)), "int32")
        row[0, : len(part)] = part
        if len(part) > 1:
            losses[start + 1 : start + len(part)] = function(row)[0, : len(part) - 1]
    return losses
