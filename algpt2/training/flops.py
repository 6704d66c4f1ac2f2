"""The floating-point operations of training, and how many a second the devices of a run do."""

import math
import time

from algpt2.checkpoints.weights import names_at_depth, weight_shapes


def peak_flops(multiply, size, repeats=5):
    """The floating-point operations a second of a square matrix product, the fastest of some.

    Args:
        multiply: function that multiplies two matrices of this size and returns when the product is there.
        size: int. The rows of the matrices.
        repeats: int.

    Returns:
        float.

    Example:
        >>> import numpy as np
        >>> matrix = np.ones((64, 64))
        >>> peak_flops(lambda: matrix @ matrix, 64) > 0
        True
    """
    multiply()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def training_flops(config, length, depth=None):
    """The floating-point operations to train on one token: those of all matrix products, forward and backward.

    Args:
        config: `algpt2.ALGPT2Config`.
        length: int. The tokens of a block.
        depth: float. The depth on average; by default that of the configuration.

    Returns:
        float. Attention counts all pairs of tokens, as is usual (Chowdhery et al., 2022, PaLM, appendix B).

    Example:
        >>> from algpt2 import ALGPT2Config
        >>> round(training_flops(ALGPT2Config(), 256) / 1e9, 2)
        0.58
    """
    hidden, embedding, shapes = config.n_embd, config.embedding_width, weight_shapes(config)
    matrices = [
        shapes[name]
        for layer in range(config.n_layer)
        for name in names_at_depth(config, layer).values()
        if len(shapes[name]) == 2
    ]
    products = (depth or config.n_layer) * (sum(map(math.prod, matrices)) / config.n_layer + 2 * length * hidden)
    products += config.vocab_size * embedding + (2 * hidden * embedding if config.is_factorized else 0)
    # A multiply and an add; once forward, twice backward.
    return 6 * products
