"""What a line of a text is, everywhere: it ends with a line feed, a carriage return, or both.

Those are the universal newlines of Python's text files. `str.splitlines` ends lines at form feeds and at separators of
Unicode as well, which are a part of the text here.
"""

import io
import itertools
import re

from algpt2.data.files import ROW_LIMIT
from algpt2.errors import InputError

WITH_END = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


def lines(texts):
    """The lines of a text that comes in pieces, without their ends.

    Args:
        texts: iterable of str. The pieces in order, cut anywhere.

    Yields:
        str.

    Raises:
        InputError: if a line is longer than the limit of a row.

    Example:
        >>> list(lines(["one\\r", "\\ntwo\\u2028still two", "\\n\\nthree"]))
        ['one', 'two\\u2028still two', '', 'three']
    """
    decoder = io.IncrementalNewlineDecoder(None, translate=True)
    rest = ""
    for text in itertools.chain(map(decoder.decode, texts), [decoder.decode("", final=True)]):
        *whole, rest = (rest + text).split("\n")
        yield from whole
        if len(rest) > ROW_LIMIT:
            raise InputError(f"a line has more than {ROW_LIMIT >> 20} MiB, the most where each line is a row")
    if rest:
        yield rest


def lines_with_ends(text):
    """The lines of a text with what ends them.

    Args:
        text: str.

    Returns:
        list of str, which joined are the text.
    """
    return WITH_END.findall(text)


def line_count(text):
    """The number of lines of a text, str; what comes after the last end is one of them."""
    ends = text.count("\n") + text.count("\r") - text.count("\r\n")
    return ends + (not text.endswith(("\r", "\n")) if text else 0)
