"""Continuations of any length, sample by sample, and their text as it comes."""

import sys
from dataclasses import dataclass, replace

from algpt2.data.encoding import encode
from algpt2.errors import InputError, library_errors

# The tokens that are made at once where a text may end a continuation, which only the text can tell.
TOKENS_BETWEEN_STOPS = 16


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; by default the likeliest one, greedy search.

    Args:
        temperature: float. The logits are divided by it; `None` means 1.
        top_k: int. Only this many of the likeliest tokens are drawn from; `None` means all.
        top_p: float. Only the likeliest tokens that have this probability together are drawn from; `None` means all.
        min_p: float. Only tokens of at least this share of the likeliest one's probability are drawn from; `None` means
            all.
        num_beams: int. The texts that beam search follows at once; 1 is no beam search. Nothing is drawn there.
        repetition_penalty: float. The positive logits of tokens in the context are divided by it, the negative ones
            multiplied; 1 leaves them.
        seed: int.

    References:
        top_p: Holtzman et al., 2019, https://arxiv.org/abs/1904.09751. min_p: Nguyen et al., 2024,
        https://arxiv.org/abs/2407.01082. repetition_penalty: Keskar et al., 2019 (CTRL),
        https://arxiv.org/abs/1909.05858, section 4.1.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    num_beams: int = 1
    repetition_penalty: float = 1.0
    seed: int = 0

    @property
    def is_greedy(self):
        """bool: whether nothing is drawn."""
        return not (self.temperature or self.top_k or self.top_p or self.min_p)

    def among(self, vocab_size):
        """The same with a `top_k` of at most the vocabulary (int), since samplers refuse more."""
        return replace(self, top_k=min(self.top_k, vocab_size)) if self.top_k else self


def continue_tokens(generate, prompt_ids, max_new_tokens, n_positions, stop_token_id, put, ends=None):
    """Continue a prompt, past the context of the model if need be.

    When the context is full, or the prompt does not fit, the older tokens are dropped: the model goes on from the last
    `n_positions - n_positions // 2` tokens.

    Args:
        generate: function from context ids (list of int), a number of tokens and a function `emit` of one id, to the
            list of new ids, at most that many, the last of them `stop_token_id` if it came. It may call `emit` for each
            of them, or for the first of them, as soon as they are there.
        prompt_ids: list of int, at least one.
        max_new_tokens: int.
        n_positions: int. The context of the model in tokens, at least 2.
        stop_token_id: int. The token that ends a text.
        put: function of int, called with every new id but `stop_token_id`.
        ends: function without arguments, asked now and then whether to end before `stop_token_id`; `None` does not.

    Returns:
        list of int, the new ids; the last of them is `stop_token_id` if it came.

    Example:
        >>> def count_on(context, count, emit):
        ...     return [context[-1] + i for i in range(1, count + 1)]
        >>> continue_tokens(count_on, [1, 2], 5, n_positions=4, stop_token_id=0, put=lambda token: None)
        [3, 4, 5, 6, 7]
    """
    context, new = list(prompt_ids), []

    def emit(token):
        new.append(token)
        if token != stop_token_id:
            put(token)

    at_once = max_new_tokens if ends is None else TOKENS_BETWEEN_STOPS
    while len(new) < max_new_tokens and new[-1:] != [stop_token_id] and not (ends and ends()):
        if len(context) >= n_positions:
            context = context[-(n_positions - n_positions // 2) :]
        before = len(new)
        ids = generate(context, min(n_positions - len(context), max_new_tokens - before, at_once), emit)
        for token in ids[len(new) - before :]:
            emit(token)
        context += ids
    return new


class TextStream:
    """Writes the text of tokens as they come; a character that spans tokens waits for the last of them.

    Args:
        tokenizer: `transformers.PreTrainedTokenizerFast`.
        prompt_ids: list of int. What comes before; it is not written.
        write: function of str.

    Example:
        >>> from algpt2.data.train_tokenizer import train_tokenizer
        >>> tokenizer, parts = train_tokenizer(["a"], vocab_size=257), []
        >>> stream = TextStream(tokenizer, tokenizer.encode("a"), parts.append)
        >>> for token in tokenizer.encode("né"):
        ...     stream.put(token)
        >>> parts
        ['n', 'é']
    """

    def __init__(self, tokenizer, prompt_ids, write):
        self._tokenizer, self._write = tokenizer, write
        # Some tokens that are written already stay, since text depends on what comes before it.
        self._ids, self._written = list(prompt_ids), len(prompt_ids)

    def put(self, token):
        """Take one more token id."""
        self._ids.append(token)
        self._flush(whole_characters=True)

    def end(self):
        """Write what is left, with U+FFFD for an unfinished character."""
        self._flush(whole_characters=False)

    def _flush(self, whole_characters):
        before, text = self._decode(self._ids[: self._written]), self._decode(self._ids)
        if whole_characters and text.endswith("\ufffd"):
            return
        if text[len(before) :]:
            self._write(text[len(before) :])
        self._ids = self._ids[self._written :]
        self._written = len(self._ids)

    def _decode(self, ids):
        with library_errors("the tokenizer fails on new tokens; take another one"):
            return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


class StopTexts:
    """Writes text as it comes, up to the first of some texts.

    Args:
        texts: list of str, none of them empty.
        write: function of str.

    Attributes:
        found: bool. Whether one of them has come.

    Example:
        >>> parts = []
        >>> stop = StopTexts(["END"], parts.append)
        >>> for text in ("some ", "text E", "NDED"):
        ...     stop.write(text)
        >>> parts, stop.found
        (['some ', 'text '], True)
    """

    def __init__(self, texts, write):
        self.texts, self._write, self._held, self.found = texts, write, "", False

    def write(self, text):
        """Take more text."""
        if self.found:
            return
        text = self._held + text
        places = [place for place in map(text.find, self.texts) if place >= 0]
        self.found = bool(places)
        # What may be the beginning of one of them waits.
        held = next((n for n in range(len(text), 0, -1) if any(t.startswith(text[-n:]) for t in self.texts)), 0)
        end = min(places, default=len(text) - held)
        self._held = text[end:]
        if text[:end]:
            self._write(text[:end])

    def end(self):
        """Write what has waited."""
        if self._held and not self.found:
            self._write(self._held)


def continue_text(generate, tokenizer, prompt, max_new_tokens, n_positions, write, stop=(), at_once=False):
    """Write the continuation of a prompt.

    Args:
        generate, max_new_tokens, n_positions: as in `continue_tokens`.
        tokenizer: `transformers.PreTrainedTokenizerFast`, with an end-of-text token.
        prompt: str, of at least one token.
        write: function of str, called for each part of the continuation as it comes.
        stop: sequence of str. Texts that end the continuation before them.
        at_once: bool. Whether to make all tokens in one call even with `stop`; beam search needs it.
    """
    prompt_ids = encode(tokenizer, prompt)
    texts = StopTexts(stop, write)
    stream = TextStream(tokenizer, prompt_ids, texts.write)
    ends = (lambda: texts.found) if stop and not at_once else None
    continue_tokens(generate, prompt_ids, max_new_tokens, n_positions, tokenizer.eos_token_id, stream.put, ends)
    stream.end()
    texts.end()


def prepare_prompts(checkpoint, prompts):
    """The tokenizer that continues texts, checked with the prompts before a model is loaded.

    A prompt that does not fit into the context is reported on standard error.

    Args:
        checkpoint: `algpt2.checkpoints.checkpoint.Checkpoint`, or `algpt2.onnx.exported.LightCheckpoint`.
        prompts: list of str.

    Returns:
        `transformers.PreTrainedTokenizerFast`, or `algpt2.onnx.exported.LightTokenizer`.

    Raises:
        InputError: if the checkpoint has no usable tokenizer, or a prompt no tokens.
    """
    tokenizer, n_positions = checkpoint.require_tokenizer(), checkpoint.config.n_positions
    if n_positions < 2:
        raise InputError(f"{checkpoint.directory}: n_positions is {n_positions}; a text to continue needs at least 2")
    for prompt in prompts:
        length = prompt_length(tokenizer, prompt)
        if length >= n_positions:
            kept = n_positions - n_positions // 2
            print(
                f"a prompt has {length} tokens, the context {n_positions}: continuing its last {kept}",
                file=sys.stderr,
            )
    return tokenizer


def prompt_length(tokenizer, prompt):
    """The tokens, int, of a prompt, str; an InputError if there are none, or it is not valid text."""
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the prompt {prompt!r} is not valid Unicode text") from error
    length = len(encode(tokenizer, prompt))
    if not length:
        raise InputError("the prompt has 0 tokens; give some text")
    return length
