"""Pictures of a campaign: errors, times and swaps over the training."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mf_zoo import files
from mf_zoo.errors import UserError
from mf_zoo.reporting.cell import Cell
from mf_zoo.reporting.statistics import deviation
from mf_zoo.training import runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = {
    "settings.png": "Last epoch's error by setting: every seed, and mean with standard deviation",
    "errors.png": "Error over the epochs",
    "times.png": "Times of the particles over the epochs, first seed",
    "swaps.png": "Swaps in the depth order since the start",
}


def drawable(folder: Path, found: Sequence[Cell]) -> list[str]:
    """Names of the pictures that there are data for."""
    names = ["settings.png"] * bool(found)
    names += ["errors.png"] * any(_histories(folder, cell) for cell in found)
    learned = [cell for cell in found if cell.mean_field]
    names += ["times.png"] * any(_times(folder, cell) for cell in learned)
    names += ["swaps.png"] * any(_histories(folder, cell) for cell in learned)
    return names


def draw(folder: Path, found: Sequence[Cell]) -> list[Path]:
    """Draws the pictures of a campaign into the folder of its results.

    Args:
        folder: The folder, with `runs.csv` and the runs' histories and times.
        found: Its cells.

    Returns:
        The files that were written.

    Raises:
        UserError: Without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "Pictures need matplotlib: pip install 'mf_zoo[plot]'. Received: no matplotlib"
        ) from error
    drawers = {
        "settings.png": _draw_settings,
        "errors.png": _draw_errors,
        "times.png": _draw_times,
        "swaps.png": _draw_swaps,
    }
    written = []
    for name in drawable(folder, found):
        figure = Figure(layout="constrained")
        drawers[name](figure, folder, found)
        # No version in the file: the same data make the same picture.
        save = lambda part, figure=figure: figure.savefig(  # noqa: E731
            part, format="png", dpi=80, metadata={"Software": None}
        )
        files.write_atomically(folder / name, save)
        written.append(folder / name)
    return written


def _histories(folder: Path, cell: Cell) -> dict[int, list[dict[str, str]]]:
    """Histories of a cell's runs by seed, where they are."""
    found = {
        seed: files.read_rows(folder / f"{row['run']}.{runs.HISTORY}")
        for seed, row in sorted(cell.rows.items())
    }
    return {seed: rows for seed, rows in found.items() if rows}


def _times(folder: Path, cell: Cell) -> dict[str, list[tuple[int, float]]]:
    """`(epoch, time)` by `stage/particle` of a cell's first seed; the last time is drawn out."""
    seed = min(cell.rows)
    run = cell.rows[seed]
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in files.read_rows(folder / f"{run['run']}.{runs.TIMES}"):
        for particle, time in row.items():
            if particle != "epoch" and time:  # a particle that is not there yet has none
                curves.setdefault(particle, []).append((int(row["epoch"]), float(time)))
    for points in curves.values():
        if points[-1][0] < int(run["epochs"]):
            points.append((int(run["epochs"]), points[-1][1]))
    return curves


def _label(cell: Cell) -> str:
    return f"{cell.model}: {cell.setting}"


def _draw_settings(figure: "Figure", folder: Path, found: Sequence[Cell]) -> None:
    figure.set_size_inches(10, 1.2 + 0.3 * len(found))
    axes = figure.subplots()
    for height, cell in enumerate(reversed(found)):
        errors = list(cell.errors.values())
        color = "C0" if cell.mean_field else "C1"
        axes.plot(errors, [height] * len(errors), "o", color=color, alpha=0.4, ms=4)
        spread = deviation(errors) or 0.0
        axes.errorbar(statistics.fmean(errors), height, xerr=spread, fmt="|", color=color, ms=12)
    axes.set(xlabel="error of the last epoch, %", yticks=range(len(found)))
    axes.set_yticklabels([_label(cell) for cell in reversed(found)], fontsize=7)
    axes.grid(axis="x", alpha=0.3)


def _panels(figure: "Figure", names: Sequence[str]) -> dict[str, Any]:
    """A panel for each name, three in a row."""
    rows = -(-len(names) // 3)
    columns = min(3, len(names))
    figure.set_size_inches(4.5 * columns, 3.2 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flat
    panels = dict(zip(names, grid, strict=False))
    for name, axes in panels.items():
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
    for axes in list(grid)[len(names) :]:
        axes.axis("off")
    return panels


def _draw_curves(figure, folder, found, value, ylabel, **scale) -> None:
    """A panel for each architecture, a colour for each cell, a line for each seed."""
    architectures = list(dict.fromkeys(f"{c.plain_model}, {c.dataset}" for c in found))
    panels = _panels(figure, architectures)
    for cell in found:
        axes = panels[f"{cell.plain_model}, {cell.dataset}"]
        color = None
        for rows in _histories(folder, cell).values():
            points = value(rows)
            (line,) = axes.plot(
                *zip(*points, strict=True),
                color=color,
                label=_label(cell) if color is None else None,
                lw=1,
                ls="-" if cell.mean_field else "--",
            )
            color = line.get_color()
    for axes in panels.values():
        axes.set_ylabel(ylabel, fontsize=8)
        axes.set(**scale)
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend(fontsize=5)


def _draw_errors(figure: "Figure", folder: Path, found: Sequence[Cell]) -> None:
    def errors(rows):
        return [(int(r["epoch"]), float(r["test_error"])) for r in rows if r["test_error"]]

    _draw_curves(figure, folder, found, errors, "error, %", yscale="log")
    for axes in figure.axes:
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")


def _draw_swaps(figure: "Figure", folder: Path, found: Sequence[Cell]) -> None:
    def swaps(rows):
        total, points = 0, [(0, 0)]
        for row in rows:
            total += int(row["order_swaps"])
            points.append((int(row["epoch"]), total))
        return points

    learned = [cell for cell in found if cell.mean_field]
    _draw_curves(figure, folder, learned, swaps, "swaps since the start")


def _draw_times(figure: "Figure", folder: Path, found: Sequence[Cell]) -> None:
    shown = [
        (cell, curves) for cell in found if cell.mean_field if (curves := _times(folder, cell))
    ]
    stages = [list(dict.fromkeys(name.split("/")[0] for name in curves)) for _, curves in shown]
    figure.set_size_inches(3.5 * max(map(len, stages)), 2.4 * len(shown))
    grid = figure.subplots(len(shown), max(map(len, stages)), squeeze=False)
    for row, (cell, curves), names in zip(grid, shown, stages, strict=True):
        for axes in row[len(names) :]:
            axes.axis("off")
        for axes, stage in zip(row, names, strict=False):
            for name, points in curves.items():
                if name.split("/")[0] == stage:
                    axes.plot(*zip(*points, strict=True), lw=1)
            axes.set_title(f"{cell.model}, {stage}", fontsize=8)
            axes.set_xlabel("epoch", fontsize=8)
        row[0].set_ylabel(f"time\n{cell.setting}", fontsize=6)
