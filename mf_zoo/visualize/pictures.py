"""Figures of matplotlib: made, and written as PNG files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mf_zoo import files
from mf_zoo.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**kwargs: Any) -> "Figure":
    """An empty figure that no window shows and that pyplot does not know.

    Args:
        **kwargs: Arguments of `matplotlib.figure.Figure`; `layout` is `"constrained"` by default.

    Raises:
        UserError: Without matplotlib.

    Example:

    >>> from mf_zoo.visualize import pictures
    >>> pictures.new_figure(figsize=(4, 3)).axes
    []
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "Pictures need matplotlib: pip install 'mf_zoo[plot]'. Received: no matplotlib"
        ) from error
    return Figure(**{"layout": "constrained", **kwargs})


def save(figure: "Figure", path: Path, dpi: int = 100) -> None:
    """Writes a figure as PNG, atomically. The same figure gives the same bytes.

    Args:
        figure: The figure.
        path: The file.
        dpi: Pixels per inch.

    Raises:
        UserError: If the file cannot be written.
    """
    # No version in the file: the same data make the same picture.
    files.write_atomically(
        path,
        lambda part: figure.savefig(part, format="png", dpi=dpi, metadata={"Software": None}),
    )
