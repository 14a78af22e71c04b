"""Tables in Markdown, and numbers in them."""

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


def signed(value: float, digits: int = 2) -> str:
    """A difference as text, with its sign; 0 is `+0`, whatever its own.

    Example:

    >>> mf_zoo.markdown.signed(-0.004), mf_zoo.markdown.signed(-0.4, 1)
    ('+0.00', '-0.4')
    """
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def interval(ends: tuple[float, float] | None, digits: int = 2, none: str = "none") -> str:
    """Both ends of an interval of differences as text, or `none` if there is no interval.

    Example:

    >>> mf_zoo.markdown.interval((-1.055, 0.25), 1)
    '-1.1 to +0.2'
    """
    return none if ends is None else " to ".join(signed(end, digits) for end in ends)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
