"""`python -m benchmarks.growth`: error against the whole cost of a training, grown or not.

It reads the results of the campaigns `growth-small` and `growth-trial`, prints a table of each and
draws them; runs that have not finished are left out. The cost is in multiply-adds of the forward
passes of all training images, the rungs of a ladder included.
"""

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import harness
from mf_zoo import files

RESULTS = Path(__file__).resolve().parent.parent / "results"
CAMPAIGNS = ("growth-small", "growth-trial")
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


def finished(campaign: str) -> list[dict[str, str]]:
    """The rows of the finished runs of a campaign; none if it has not begun."""
    rows = files.read_rows(RESULTS / campaign / "runs.csv")
    return [row for row in rows if row["state"] == "finished"]


def circumstances(rows: Sequence[Mapping[str, str]]) -> str:
    """What the runs of a campaign were trained on and measured on, and by which recipe."""
    held_out = int(rows[-1]["evaluated_on"].split()[1])
    return (
        f"Trained on the first {int(rows[-1]['train_images']):,} training images of CIFAR-10, "
        f"measured on the {held_out:,} after them; recipe {rows[-1]['recipe']}"
    )


def draw(campaigns: Iterable[Sequence[Mapping[str, str]]], path: Path) -> None:
    """Draws error against cost: a panel for each campaign, a colour for each network, all seeds,
    and a line at their mean."""
    campaigns = list(campaigns)
    if (figure := harness.figure(6.4 * len(campaigns), 3.8)) is None:
        return
    models = sorted(
        {cell.model for rows in campaigns for cell in cells(rows)},
        key=lambda name: (len(name), name),
    )
    panels = figure.subplots(1, len(campaigns), squeeze=False)[0]
    for axes, rows in zip(panels, campaigns, strict=True):
        found = cells(rows)
        for cell in sorted(found, key=lambda one: (models.index(one.model), one.start)):
            color = f"C{models.index(cell.model)}"
            filled = color if cell.start else "none"
            label = f"{cell.model}, {'grown' if cell.start else 'from scratch'}"
            costs = [cell.cost] * len(cell.errors)
            axes.scatter(costs, cell.errors, s=40, edgecolors=color, facecolors=filled, label=label)
            axes.plot(cell.cost, cell.mean, "_", color=color, markersize=18)
        top = 1.08 * max(error for cell in found for error in cell.errors)
        axes.set(xlabel="training, $10^{12}$ multiply-adds", ylabel="error, %", ylim=(0, top))
        axes.set_title(f"{int(rows[-1]['train_images']):,} training images", fontsize=10)
        axes.grid(alpha=0.3)
        handles, labels = axes.get_legend_handles_labels()
        # A network that was trained twice, for longer the second time, is named once.
        named = dict(zip(labels, handles, strict=True))
        axes.legend(named.values(), named, fontsize=8, loc="lower right")
    harness.save_figure(figure, path)


def readme_table() -> str:
    """The committed results as tables with their circumstances."""
    parts = []
    for campaign in CAMPAIGNS:
        if rows := finished(campaign):
            devices = " and ".join(dict.fromkeys(row["device"] for row in rows))
            backends = " and ".join(dict.fromkeys(row["backend"] for row in rows))
            parts += [table(rows), f"{circumstances(rows)}; {devices}, {backends}."]
    return "\n\n".join(parts)


def main() -> int:
    """The command."""
    print(readme_table())
    draw([rows for campaign in CAMPAIGNS if (rows := finished(campaign))], PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
