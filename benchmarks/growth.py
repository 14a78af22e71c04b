"""`python -m benchmarks.growth`: error against the whole cost of a training, grown or not.

It reads the results of the campaign `growth-small`, prints them as a table and draws them; runs
that have not finished are left out. The cost is in multiply-adds of the forward passes of all
training images, the rungs of a ladder included.
"""

import statistics
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks import harness
from mf_zoo import files

RESULTS = Path(__file__).resolve().parent.parent / "results" / "growth-small" / "runs.csv"
PICTURE = harness.RESULTS / "growth.png"


@dataclass(frozen=True)
class Cell:
    """Runs that differ by their seed alone.

    Attributes:
        model: Name of the network.
        start: The first epochs of a grown network, `"10 at the depth of ResNet20"`; else empty.
        epochs: Number of epochs, these included.
        cost: In 10^12 multiply-adds.
        errors: In percent, one a run.
    """

    model: str
    start: str
    epochs: int
    cost: float
    errors: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean of the errors."""
        return statistics.fmean(self.errors)


def cells(rows: Iterable[Mapping[str, str]]) -> list[Cell]:
    """The finished runs in rows of a `runs.csv`, in the order of their cost.

    Args:
        rows: The rows. Runs that others grow from are left out.
    """
    found: dict[tuple[str, str, int], list[Mapping[str, str]]] = {}
    for row in rows:
        values = dict(text.split("=", 1) for text in row["overrides"].split())
        if row["state"] != "finished" or "until" in values:
            continue
        network, _, until = values.get("ladder", "").partition(":")
        start = f"{until} at the depth of {network}" if network else ""
        found.setdefault((row["model"], start, int(row["epochs"])), []).append(row)
    result = [
        Cell(
            *key,
            cost=float(runs[0]["multiply_adds"]) / 1e12,
            errors=tuple(float(row["test_error"]) for row in runs),
        )
        for key, runs in found.items()
    ]
    return sorted(result, key=lambda cell: (cell.cost, cell.model, cell.start, cell.epochs))


def table(rows: Iterable[Mapping[str, str]]) -> str:
    """A Markdown table of the finished runs, one line for all seeds."""
    lines = ["| network | epochs | of these | 10^12 multiply-adds | error, % | mean | seeds |"]
    lines.append("|---|---:|---|---:|---|---:|---:|")
    for cell in cells(rows):
        errors = ", ".join(f"{error:.1f}" for error in cell.errors)
        line = (cell.model, str(cell.epochs), cell.start, f"{cell.cost:.1f}", errors)
        lines.append(f"| {' | '.join(line)} | {cell.mean:.1f} | {len(cell.errors)} |")
    return "\n".join(lines)


def draw(rows: Iterable[Mapping[str, str]], path: Path) -> None:
    """Draws error against cost: a colour for each network, all seeds, and a line at their mean."""
    found = cells(rows)
    if (figure := harness.figure(6.4, 3.8)) is None:
        return
    axes = figure.subplots()
    models = sorted({cell.model for cell in found}, key=lambda name: (len(name), name))
    for cell in sorted(found, key=lambda cell: (models.index(cell.model), cell.start)):
        color = f"C{models.index(cell.model)}"
        filled = color if cell.start else "none"
        label = f"{cell.model}, {'grown' if cell.start else 'from scratch'}"
        costs = [cell.cost] * len(cell.errors)
        axes.scatter(costs, cell.errors, s=40, edgecolors=color, facecolors=filled, label=label)
        axes.plot(cell.cost, cell.mean, "_", color=color, markersize=18)
    axes.set(xlabel="training, $10^{12}$ multiply-adds", ylabel="error, %", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    harness.save_figure(figure, path)


def readme_table() -> str:
    """The committed results as a table with their circumstances."""
    rows = [row for row in files.read_rows(RESULTS) if row["state"] == "finished"]
    row = rows[-1]
    devices = " and ".join(dict.fromkeys(row["device"] for row in rows))
    held_out = int(row["evaluated_on"].split()[1])
    return (
        f"{table(rows)}\n\nTrained on the first {int(row['train_images']):,} training images of "
        f"CIFAR-10, measured on the {held_out:,} after them; recipe {row['recipe']}; "
        f"{devices}, {row['backend']}."
    )


def main() -> int:
    """The command."""
    print(readme_table())
    draw(files.read_rows(RESULTS), PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
