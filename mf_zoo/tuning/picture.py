"""The trials of a search as a picture."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any


def parallel_coordinates(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str], logarithmic: Collection[str] = ()
) -> Any:
    """Draws a line per trial through the values that it was given, coloured by its error.

    A line has a gap where a value did not matter in the trial. The last axis is the error.

    Args:
        rows: Rows of the trial table; those without `val_error` are left out.
        names: Columns to draw, an axis each.
        logarithmic: Those of them whose axis is logarithmic.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        ImportError: Without matplotlib.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    rows = sorted(
        (row for row in rows if row["val_error"] is not None), key=lambda row: -row["val_error"]
    )
    columns = [*names, "val_error"]
    axes_of = {name: _axis([row[name] for row in rows], name in logarithmic) for name in columns}
    figure = Figure(figsize=(1.3 * len(columns) + 1, 4.5), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["viridis_r"]
    for rank, row in enumerate(rows):  # The best last, on top.
        heights = [axes_of[name][0](row[name]) for name in columns]
        share = rank / max(len(rows) - 1, 1)
        style = {"linewidth": 2.5} if rank == len(rows) - 1 else {"linewidth": 1, "alpha": 0.7}
        axes.plot(heights, color=colours(share), marker=".", **style)
    for x, name in enumerate(columns):
        axes.axvline(x, color="grey", linewidth=0.5, zorder=0)
        for height, label in axes_of[name][1]:
            axes.annotate(label, (x, height), (3, 0), textcoords="offset points", fontsize=7)
    axes.set_xticks(range(len(columns)), [*names, "error %"], rotation=25, ha="right", fontsize=8)
    axes.set(yticks=[], ylim=(-0.05, 1.05), xlim=(-0.2, len(columns) - 0.4))
    axes.set_title(f"{len(rows)} trials; the darker the better, the best one thick", fontsize=9)
    for side in axes.spines.values():
        side.set_visible(False)
    return figure


def _axis(values: Sequence[Any], logarithmic: bool) -> tuple[Any, list[tuple[float, str]]]:
    """How high a value is on its axis, in [0, 1], NaN for `None`; and the labels of the axis."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in known):
        scale = math.log if logarithmic else float
        low, high = (min(known), max(known)) if known else (0.0, 0.0)

        def height(value: Any) -> float:
            if value is None:
                return math.nan
            return (scale(value) - scale(low)) / (scale(high) - scale(low)) if high > low else 0.5

        return height, [(height(value), f"{value:.4g}") for value in sorted({low, high})]
    kinds = sorted({str(value) for value in known})

    def place(value: Any) -> float:
        return math.nan if value is None else (kinds.index(str(value)) + 0.5) / len(kinds)

    return place, [(place(kind), kind) for kind in kinds]
