"""The memory that a training step frees, and that the next one takes."""

import ctypes

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# The largest values that mallopt takes for the two thresholds.
LARGEST_INT, LARGEST_THRESHOLD = 2**31 - 1, 2**25


def keep_freed_memory():
    """Have the C library keep arrays of up to 32 MB that this process frees, where it is glibc.

    By default it gives them back to the system, and every step waits for tens of thousands of new pages, though it
    takes the same memory as the one before. Elsewhere nothing happens. TensorFlow does not gain by it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    # Larger arrays are left to the system, so that they do not come to take more than is used at once.
    mallopt(M_MMAP_THRESHOLD, LARGEST_THRESHOLD)
    mallopt(M_TRIM_THRESHOLD, LARGEST_INT)
