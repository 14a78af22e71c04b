"""Tables in Markdown."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown.

    Args:
        header: The names of the columns.
        rows: For each row its cells, as many as there are columns.

    Returns:
        Its lines, without a line break at the end.

    Raises:
        ValueError: If a row has more or fewer cells than the header.

    Example:

    >>> print(mf_zoo.markdown.table(["model", "error"], [["ResNet20", "8.75"]]))
    | model | error |
    |---|---|
    | ResNet20 | 8.75 |
    """
    lines = [_line(header), "|" + "---|" * len(header)]
    for row in rows:
        if len(row) != len(header):
            raise ValueError(
                f"A row must have a cell for each of the columns {list(header)}. "
                f"Received: {list(row)}"
            )
        lines.append(_line(row))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
