"""Functions timed side by side, and the processor that they are timed on."""

import os
import platform
import time

from tqdm.auto import tqdm


def time_in_turns(variants, rounds):
    """Time functions one after the other, round by round, in every other round backwards.

    Args:
        variants: dict of str to function without arguments. Each is called once more before, to warm up.
        rounds: int.

    Returns:
        tuple of dict of str to list of float, the seconds, and dict of str to float, those of the first call.

    Example:
        >>> seconds, first = time_in_turns({"nothing": lambda: None}, rounds=2)
        >>> len(seconds["nothing"]), list(first)
        (2, ['nothing'])
    """
    first, seconds = {}, {name: [] for name in variants}
    with tqdm(total=(rounds + 1) * len(variants), leave=False, disable=None) as progress:
        for number in range(-1, rounds):
            for name in list(variants)[:: -1 if number % 2 else 1]:
                progress.set_description(str(name))
                start = time.perf_counter()
                variants[name]()
                elapsed = time.perf_counter() - start
                seconds[name].append(elapsed) if number >= 0 else first.update({name: elapsed})
                progress.update()
    return seconds, first


def cores():
    """int: those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def processor():
    """str: the number of cores, the name of the processor and its widest vector instructions."""
    name, flags = platform.processor() or platform.machine(), ""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = dict(line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line)
        values = {key.strip(): value.strip() for key, value in lines.items()}
        name, flags = values.get("model name", name), values.get("flags", "").split()
    except OSError:
        pass
    known = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}
    best = next((title for flag, title in known.items() if flag in flags), "")
    return f"{cores()} cores of {name}{f' ({best})' if best else ''}"
