"""What the devices of a run can do."""

import time


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
