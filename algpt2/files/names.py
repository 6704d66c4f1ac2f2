"""Names of files: short ones, and those that others than this project gave."""

import fnmatch
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


def foreign_file(directory, patterns):
    """A file in a directory, or in those below, whose path in it matches none of some patterns.

    Args:
        directory: `Path`.
        patterns: iterable of str, as of `fnmatch`: a star matches also what has slashes.

    Returns:
        str, its path in the directory; `None` if all match.
    """
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir())
    return next((name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in patterns)), None)
