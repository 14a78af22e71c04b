"""`python -m benchmarks.growth`: error against the whole cost of a training, grown or not.

It reads the results of the campaign `growth-small` and prints them as a table; runs that have not
finished are left out. The cost is in multiply-adds of the forward passes of all training images,
the rungs of a ladder included.
"""

import statistics
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from mf_zoo import files

RESULTS = Path(__file__).resolve().parent.parent / "results" / "growth-small" / "runs.csv"


def table(rows: Iterable[Mapping[str, str]]) -> str:
    """A Markdown table of the finished runs in rows of a `runs.csv`, one line for all seeds.

    Args:
        rows: The rows. Runs that others grow from are left out.
    """
    cells: dict[tuple[str, str, int], list[Mapping[str, str]]] = {}
    for row in rows:
        values = dict(text.split("=", 1) for text in row["overrides"].split())
        if row["state"] != "finished" or "until" in values:
            continue
        network, _, until = values.get("ladder", "").partition(":")
        start = f"{until} at the depth of {network}" if network else ""
        cells.setdefault((row["model"], start, int(row["epochs"])), []).append(row)
    lines = ["| network | epochs | of these | 10^12 multiply-adds | error, % | mean | seeds |"]
    lines.append("|---|---:|---|---:|---|---:|---:|")
    for (model, start, epochs), found in sorted(
        cells.items(), key=lambda cell: (float(cell[1][0]["multiply_adds"]), cell[0])
    ):
        errors = [float(row["test_error"]) for row in found]
        cost = float(found[0]["multiply_adds"]) / 1e12
        line = (model, str(epochs), start, f"{cost:.1f}", ", ".join(f"{e:.1f}" for e in errors))
        lines.append(f"| {' | '.join(line)} | {statistics.fmean(errors):.1f} | {len(errors)} |")
    return "\n".join(lines)


def readme_table() -> str:
    """The committed results as a table with their circumstances."""
    rows = [row for row in files.read_rows(RESULTS) if row["state"] == "finished"]
    row = rows[-1]
    held_out = int(row["evaluated_on"].split()[1])
    return (
        f"{table(rows)}\n\nTrained on the first {int(row['train_images']):,} training images of "
        f"CIFAR-10, measured on the {held_out:,} after them; recipe {row['recipe']}; "
        f"{row['device']}, {row['backend']}."
    )


def main() -> int:
    """The command."""
    print(readme_table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
