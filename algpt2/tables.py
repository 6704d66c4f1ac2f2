"""Tables in Markdown."""


def markdown_table(rows):
    """Rows as a Markdown table with aligned columns.

    Args:
        rows: iterable of equally long iterables, printed as str, the first with the headings.

    Returns:
        str, without a line end.

    Example:
        >>> print(markdown_table([["depth", "loss"], ["6", "3.25"]]))
        | depth | loss |
        |-------|------|
        | 6     | 3.25 |
    """
    rows = [[str(cell).replace("|", r"\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
