"""The memory that a training step frees, and that the next one takes."""

import ctypes

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST = 2**31 - 1


def keep_freed_memory():
    """Have the C library keep what this process frees, where it is glibc; elsewhere nothing happens.

    By default it gives large arrays back to the system, and every step waits for tens of thousands of new pages, though
    it takes the same memory as the one before. The process stays as large as its largest step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, LARGEST)
