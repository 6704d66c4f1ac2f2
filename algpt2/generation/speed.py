"""How fast a generator makes tokens."""

import time


class Speed:
    """A generator that counts the tokens it makes, and the time that they take.

    Args:
        generate: function as `algpt2.generation.continuation.continue_tokens` takes it.

    Attributes:
        tokens: int.
        seconds: float.

    Example:
        >>> generate = Speed(lambda context, count, emit: [7] * count)
        >>> generate([1, 2], 3, emit=None), generate.tokens
        ([7, 7, 7], 3)
    """

    def __init__(self, generate):
        self.generate, self.tokens, self.seconds = generate, 0, 0.0

    def warm_up(self, count):
        """Make some tokens (int) that do not count: TensorFlow traces its functions when they are first called."""
        self.generate([0], count, lambda token: None)

    def __call__(self, context, count, emit):
        start = time.perf_counter()
        ids = self.generate(context, count, emit)
        self.tokens, self.seconds = self.tokens + len(ids), self.seconds + time.perf_counter() - start
        return ids

    def __str__(self):
        return f"{self.tokens} tokens in {self.seconds:.2f} s, {self.tokens / max(self.seconds, 1e-9):.1f} tokens/s"
