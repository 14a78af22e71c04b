"""What all campaigns together say of mean-field networks and their plain twins."""

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from mf_zoo import applications
from mf_zoo.markdown import interval, signed, table
from mf_zoo.reporting.cell import Cell, cells, read_results
from mf_zoo.reporting.published import CLAIM
from mf_zoo.reporting.statistics import deviation, t_interval


def evidence(folders: Iterable[str | Path]) -> str:
    """Writes one table of mean-field and plain networks from the results of campaigns.

    A row is a mean-field network by one setting beside its plain twin, by the seeds that both have:
    means and sample standard deviations of the last epoch's error on the test images, the mean of
    the differences paired by seed and its 95 % interval, and the swaps in the depth order. Runs of
    the same setting and seed that several campaigns have count once. Held-out images are not test
    images, and runs evaluated on them are left out.

    Args:
        folders: The folders of the campaigns' results, each with its `runs.csv`.

    Returns:
        The table in Markdown, or a sentence if no pair has been trained.

    Raises:
        UserError: If the results cannot be read.

    Example:

    ```python
    print(mf_zoo.reporting.evidence(["results/cifar10-resnets", "results/cifar100-resnets"]))
    ```
    """
    found = cells(row for folder in folders for row in read_results(Path(folder)))
    found = [cell for cell in found if cell.evaluated_on == "test"]
    networks = list(applications.networks())
    rows = []
    for cell in sorted(found, key=lambda cell: (networks.index(cell.model), cell.dataset)):
        twin = cell.twin(found)
        if twin and (differences := cell.differences(twin)):
            rows.append(_row(cell, twin, differences))
    if not rows:
        return "No mean-field network and its plain twin have a seed in common yet."
    header = ["network", "dataset", "setting", "seeds", "mean-field", "plain", "difference"]
    return table([*header, "95 % interval", "paper", "swaps"], rows)


def _row(cell: Cell, twin: Cell, differences: dict[int, float]) -> list[str]:
    values = list(differences.values())
    swaps = statistics.fmean(int(cell.rows[seed]["order_swaps"]) for seed in differences)
    return [
        f"`{cell.plain_model}`",
        cell.dataset,
        f"{cell.setting}, {cell.train_images:,} images",
        str(len(values)),
        *(_errors([one.errors[seed] for seed in differences]) for one in (cell, twin)),
        signed(statistics.fmean(values)),
        interval(t_interval(values), none="none for n = 1"),
        f"{signed(-CLAIM[1])} to {signed(-CLAIM[0])}",
        f"{swaps:.1f}",
    ]


def _errors(values: Sequence[float]) -> str:
    spread = deviation(values)
    return f"{statistics.fmean(values):.2f}" + ("" if spread is None else f" ± {spread:.2f}")
