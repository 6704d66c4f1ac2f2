"""What command lines say of a configuration: a sharing pattern, and fields by their names."""

import json
import re

from huggingface_hub.errors import StrictDataclassFieldValidationError

from algpt2.configuration import ALGPT2Config, layer_schedule


def parse_sharing(text, n_layer):
    """The layer schedule that a command line names.

    Args:
        text: str. A pattern of `layer_schedule`, or the block of every depth: `"0,0,1,1"`.
        n_layer: int. The number of depths of a pattern.

    Returns:
        list of int.

    Raises:
        ValueError: as `layer_schedule`.

    Example:
        >>> parse_sharing("cycle:2", 4), parse_sharing("0,0,1", 4)
        ([0, 1, 0, 1], [0, 0, 1])
    """
    blocks = re.split(r"\s*,\s*|\s+", text.strip())
    if all(block.isdecimal() for block in blocks):
        return [int(block) for block in blocks]
    return layer_schedule(text, n_layer)


def parse_overrides(assignments):
    """The fields of a configuration that a command line sets.

    Args:
        assignments: list of str, each `"field=value"`; the value in JSON (`null`, `true`, `[0, 0, 1]`), or else text.

    Returns:
        dict of str to value, for `ALGPT2Config.from_dict` and everything that takes its overrides.

    Raises:
        ValueError: for an unknown field or a value of the wrong type; the message names the field.

    Example:
        >>> parse_overrides(["n_embd=256", "embedding_size=null", "activation_function=relu"])
        {'n_embd': 256, 'embedding_size': None, 'activation_function': 'relu'}
    """
    types, probe, overrides = ALGPT2Config.__annotations__, ALGPT2Config(), {}
    fields = f"the fields of the configuration are {', '.join(types)}"
    for assignment in assignments:
        given, equals, text = assignment.partition("=")
        field = ALGPT2Config.attribute_map.get(given, given)
        if not equals:
            raise ValueError(f"{assignment!r} is not of the form field=value; {fields}")
        if field not in types:
            raise ValueError(f"unknown field {given!r}; {fields}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        try:
            # A strict dataclass checks the type of what it is given.
            setattr(probe, field, value)
        except StrictDataclassFieldValidationError as error:
            expected = types[field].__name__ if isinstance(types[field], type) else types[field]
            raise ValueError(
                f"{given} must be {str(expected).replace('None', 'null')}, but is {text!r}; {fields}"
            ) from error
        overrides[field] = value
    return overrides
