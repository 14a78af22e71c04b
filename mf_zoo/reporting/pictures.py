"""Pictures of a campaign: errors, times and swaps over the training."""

import statistics
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mf_zoo import files, visualize
from mf_zoo.reporting.cell import Cell
from mf_zoo.reporting.statistics import deviation
from mf_zoo.training import runs
from mf_zoo.visualize.pictures import new_figure, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES = {
    "settings.png": "Last epoch's error by setting: every seed, and mean with standard deviation",
    "errors.png": "Error over the epochs",
    "times.png": "Times of the particles over the epochs, first seed",
    "order.png": "Depth order over the epochs where blocks changed places, first seed: a line is "
    "a block, the lowest is applied first",
    "swaps.png": "Swaps in the depth order since the start",
}


def drawable(folder: Path, found: Sequence[Cell]) -> list[str]:
    """Names of the pictures that there are data for."""
    names = ["settings.png"] * bool(found)
    names += ["errors.png"] * any(_histories(folder, cell) for cell in found)
    learned = [cell for cell in found if cell.mean_field]
    names += ["times.png"] * any(_times(folder, cell) for cell in learned)
    names += ["order.png"] * any(_reordered(folder, cell) for cell in learned)
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
    drawers = {
        "settings.png": _draw_settings,
        "errors.png": _draw_errors,
        "times.png": _draw_times,
        "order.png": _draw_order,
        "swaps.png": _draw_swaps,
    }
    written = []
    for name in drawable(folder, found):
        figure = new_figure()
        drawers[name](figure, folder, found)
        save(figure, folder / name, dpi=80)
        written.append(folder / name)
    return written


def _histories(folder: Path, cell: Cell) -> dict[int, list[dict[str, str]]]:
    """Histories of a cell's runs by seed, where they are."""
    found = {
        seed: files.read_rows(folder / f"{row['run']}.{runs.HISTORY}", "shared")
        for seed, row in sorted(cell.rows.items())
    }
    return {seed: rows for seed, rows in found.items() if rows}


def _times(folder: Path, cell: Cell) -> "dict[str, visualize.StageHistory]":
    """The times of a cell's first seed by stage, if they are there."""
    path = folder / f"{cell.rows[min(cell.rows)]['run']}.{runs.TIMES}"
    return visualize.read(path) if path.exists() else {}


def _reordered(folder: Path, cell: Cell) -> bool:
    """Whether blocks changed places in the training of a cell's first seed."""
    return any(stage.swaps().any() for stage in _times(folder, cell).values())


def _settings(found: Sequence[Cell]) -> tuple[str, list[str]]:
    """What all settings have in common, and of each cell the rest."""
    settings = [cell.setting.split(", ") for cell in found]
    shared = [part for part in settings[0] if all(part in parts for parts in settings)]
    own = [", ".join(part for part in parts if part not in shared) for parts in settings]
    return ", ".join(shared), own


def _labels(found: Sequence[Cell]) -> list[str]:
    """A name for each cell: its network, and what not all settings have."""
    pairs = zip(found, _settings(found)[1], strict=True)
    return [f"{cell.model}: {own}" if own else cell.model for cell, own in pairs]


def _draw_settings(figure: "Figure", folder: Path, found: Sequence[Cell]) -> None:
    """A panel for each dataset and images evaluated on, whose errors have an axis of their own."""
    groups: dict[tuple, list[tuple[Cell, str]]] = {}
    for cell, label in zip(found, _labels(found), strict=True):
        groups.setdefault(cell.data, []).append((cell, label))
    sizes = [len(group) for group in groups.values()]
    figure.set_size_inches(8, 0.6 + sum(0.8 + 0.3 * size for size in sizes))
    shared = _settings(found)[0]
    panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[2 + n for n in sizes])
    for axes, (data, group) in zip(panels.flat, groups.items(), strict=True):
        for height, (cell, _) in enumerate(reversed(group)):
            errors = list(cell.errors.values())
            color = "C0" if cell.mean_field else "C1"
            axes.plot(errors, [height] * len(errors), "o", color=color, alpha=0.4, ms=4)
            spread = deviation(errors) or 0.0
            mean = statistics.fmean(errors)
            axes.errorbar(mean, height, xerr=spread, fmt="|", color=color, ms=12)
        axes.set(ylim=(-0.7, len(group) - 0.3), yticks=range(len(group)))
        axes.set_yticklabels([label for _, label in reversed(group)], fontsize=7)
        axes.set_title(shared if len(groups) == 1 else f"{data[0]}: {shared}", fontsize=9)
        axes.grid(axis="x", alpha=0.3)
    panels.flat[-1].set_xlabel("error of the last epoch, %")


def _panels(figure: "Figure", names: Sequence[str]) -> dict[str, Any]:
    """A panel for each name, three in a row."""
    rows = -(-len(names) // 3)
    columns = min(3, len(names))
    figure.set_size_inches(4.5 * columns, 3.2 * rows)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    panels = dict(zip(names, grid, strict=False))
    for axes in grid[len(names) :]:
        axes.axis("off")
    return panels


def _draw_curves(figure, folder, found, draw_line, **scale) -> None:
    """A panel for each architecture, a colour for each cell, a line for each seed."""
    architectures = list(dict.fromkeys(f"{c.plain_model}, {c.dataset}" for c in found))
    panels = _panels(figure, architectures)
    for cell, label in zip(found, _labels(found), strict=True):
        name = f"{cell.plain_model}, {cell.dataset}"
        axes, color = panels[name], None
        for rows in _histories(folder, cell).values():
            style = {"lw": 1, "ls": "-" if cell.mean_field else "--", "color": color}
            draw_line(rows, axes, label=label if color is None else None, **style)
            color = axes.get_lines()[-1].get_color()
    for name, axes in panels.items():
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("epoch", fontsize=8)
        axes.yaxis.label.set_fontsize(8)
        axes.set(**scale)
        axes.grid(alpha=0.3)
        if axes.get_lines():
            axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
    names = [len(axes.get_legend_handles_labels()[1]) for axes in panels.values()]
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.13 * max(names) * -(-len(panels) // 3))


def _draw_errors(figure: "Figure", folder: Path, found: Sequence[Cell]) -> None:
    def line(rows, axes, **style):
        points = [(int(r["epoch"]), float(r["test_error"])) for r in rows if r["test_error"]]
        axes.plot(*zip(*points, strict=True), **style)

    _draw_curves(figure, folder, found, line, ylabel="error, %", yscale="log")
    for axes in figure.axes:
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")


def _draw_swaps(figure: "Figure", folder: Path, found: Sequence[Cell]) -> None:
    def line(rows, axes, **style):
        visualize.swaps(rows, ax=axes, **style)

    _draw_curves(figure, folder, [cell for cell in found if cell.mean_field], line)


def _draw_times(figure: "Figure", folder: Path, found: Sequence[Cell]) -> None:
    shown = [cell for cell in found if cell.mean_field and _times(folder, cell)]
    _draw_stages(figure, folder, found, shown, visualize.times, "time", legend=False, lw=1)


def _draw_order(figure: "Figure", folder: Path, found: Sequence[Cell]) -> None:
    shown = [cell for cell in found if cell.mean_field and _reordered(folder, cell)]
    _draw_stages(figure, folder, found, shown, visualize.depth_order, "place in the depth order")


def _draw_stages(figure, folder, found, shown, draw_stage, ylabel, **style) -> None:
    """A row for each cell that is shown, a panel for each stage of its network."""
    own = dict(zip((cell.setting for cell in found), _settings(found)[1], strict=True))
    columns = max(len(_times(folder, cell)) for cell in shown)
    figure.set_size_inches(3.5 * columns, 2.4 * len(shown))
    grid = figure.subplots(len(shown), columns, squeeze=False)
    for row, cell in zip(grid, shown, strict=True):
        run = cell.rows[min(cell.rows)]
        path, last = folder / f"{run['run']}.{runs.TIMES}", int(run["epochs"])
        stages = _times(folder, cell)
        for axes in row[len(stages) :]:
            axes.axis("off")
        for axes, stage in zip(row, stages, strict=False):
            draw_stage(path, stage, axes, last_epoch=last, **style)
            axes.set_title(f"{cell.model}, {stage}", fontsize=8)
            axes.set_xlabel("epoch", fontsize=8)
            axes.set_ylabel("")
        setting = "\n".join(textwrap.wrap(own[cell.setting], 40))
        row[0].set_ylabel(f"{ylabel}\n{setting}".strip(), fontsize=6)
