"""Short names for paths."""

import os
from pathlib import Path

from algpt2.errors import InputError


def labels(directories):
    """The shortest ends of some paths that tell them apart.

    Args:
        directories: list of path.

    Returns:
        list of str.

    Raises:
        InputError: if two are the same.

    Example:
        >>> labels(["runs/gpt2", "old/runs/shared", "runs/shared/"])[:2]
        ['gpt2', 'old/runs/shared']
    """
    paths = [Path(os.path.abspath(directory)).parts for directory in directories]
    if len(set(paths)) < len(paths):
        raise InputError("the same directory is given twice; give each one once")
    result = []
    for path in paths:
        others = [other for other in paths if other != path]
        count = 1
        while any(other[-count:] == path[-count:] for other in others):
            count += 1
        result.append(str(Path(*path[-count:])))
    return result
