"""The hash by which a cache and a run notice that a text or a tokenizer is not the one they had."""

import hashlib
import json


def json_hash(*values):
    """A hash of values, in hexadecimal; the order of the keys of a dict does not matter.

    Args:
        *values: what JSON can hold.

    Returns:
        str of 64 digits.

    Example:
        >>> json_hash("texts", {"rows": 3, "end": 1}) == json_hash("texts", {"end": 1, "rows": 3})
        True
    """
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
