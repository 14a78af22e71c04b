"""The report of a campaign as Markdown: the same bytes from the same results."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from mf_zoo import data
from mf_zoo.markdown import interval, signed, table
from mf_zoo.reporting import published
from mf_zoo.reporting.cell import Cell, cells, read_results
from mf_zoo.reporting.pictures import PICTURES, drawable
from mf_zoo.reporting.statistics import (
    deviation,
    difference_interval,
    pooled_deviation,
    t_interval,
)

REPORT = "report.md"


def markdown(folder: Path) -> str:
    """Writes up the results of a campaign.

    For each network and setting the mean and the standard deviation over seeds of the last
    epoch's error, never the best epoch's, beside published figures; and for each mean-field
    network the difference to its plain twin, paired by seed, with a 95 % confidence interval. Where
    a network was trained by several settings, the differences to the first of them, with theirs.

    Args:
        folder: The folder of its results, with `runs.csv`.

    Returns:
        The Markdown text, a function of `runs.csv` and of which histories there are.

    Raises:
        UserError: If the results cannot be read.

    Example:

    ```python
    print(mf_zoo.reporting.markdown(Path("results/cifar10-resnets")))
    ```
    """
    rows = read_results(folder)
    found = cells(rows)
    counts = [
        f"{sum(row['state'] == state for row in rows)} {state}"
        for state in sorted({row["state"] for row in rows} - {"finished"})
    ]
    finished = [row for row in rows if row["state"] == "finished"]
    lines = [
        f"# {folder.resolve().name}",
        "",
        "Made by `mf-zoo report` from `runs.csv`; edit neither.",
        f"{len(finished)} of {len(rows)} runs are finished"
        + (f" ({', '.join(counts)}; they are in no table)." if counts else "."),
        "",
        "Errors are in percent after the **last** epoch, never the best one: of the most probable",
        "class (mean and sample standard deviation, n - 1, over seeds), of the five most probable",
        "ones (top-5) and of the most probable one's superclass (coarse). Loss is the mean of the",
        "negative log-likelihood of the right class, in nats. Swaps are exchanges of neighbours in",
        "the depth order over the whole training. Figures are means over seeds.",
    ]
    for key in dict.fromkeys(cell.data for cell in found):
        chosen = [cell for cell in found if cell.data == key]
        dataset, train_images, evaluated_on = key
        lines += [
            "",
            f"## {dataset}, {train_images:,} training images: error on the "
            + ("test images" if evaluated_on == "test" else evaluated_on),
            "",
            *_errors(chosen),
        ]
        if pairs := [(cell, twin) for cell in chosen if (twin := cell.twin(chosen))]:
            lines += ["", "### Mean-field minus plain", "", *_differences(pairs)]
        if compared := _settings(chosen):
            lines += ["", "### Settings minus the first", "", *compared]
    if names := drawable(folder, found):
        lines += ["", "## Pictures"]
        for name in names:
            lines += ["", f"![{PICTURES[name]}]({name})"]
    lines += ["", "## Trained with", ""]
    for column in ("device", "backend", "versions"):
        values = sorted({row[column] for row in finished} - {""})
        lines += [f"- {column}: {'; '.join(values) or 'nothing yet'}"]
    return "\n".join(lines) + "\n"


def _errors(chosen: Sequence[Cell]) -> list[str]:
    compared = chosen[0].evaluated_on == "test"
    kinds = published.KINDS if compared else ()
    coarse = data.superclasses(chosen[0].dataset) is not None
    others = {"top-5": ("test_top5_error", 2)}
    if coarse:
        others["coarse"] = ("test_coarse_error", 2)
    others["loss"] = ("test_loss", 4)
    rows = []
    sources: dict[tuple[str, published.Source], dict[str, None]] = {}
    for cell in chosen:
        errors = list(cell.errors.values())
        spread = deviation(errors)
        swaps = statistics.fmean(int(row["order_swaps"]) for row in cell.rows.values())
        row = [f"`{cell.model}`", cell.setting, str(len(errors)), f"{statistics.fmean(errors):.2f}"]
        row += ["" if spread is None else f"{spread:.2f}"]
        for column, digits in others.values():
            values = cell.values(column)
            row.append(f"{statistics.fmean(values):.{digits}f}" if values else "")
        row += [f"{swaps:.1f}" if cell.mean_field else ""]
        for kind in kinds:
            entry = published.find(cell.model, cell.dataset, kind)
            row.append(f"{entry.error:.2f}" if entry else "")
            if entry:
                sources.setdefault((kind, entry.source), {}).update({entry.note: None})
        rows.append(row)
    header = ["model", "setting", "seeds", "mean", "deviation", *others, "swaps", *kinds]
    lines = [table(header, rows)]
    if sources:
        lines += ["", "Published figures are of the plain network:", ""]
        # In the order of the columns; sorting keeps that of the rows.
        for kind, source in sorted(sources, key=lambda key: kinds.index(key[0])):
            said = " ".join(filter(None, (source.note, *sources[kind, source])))
            lines.append(f"- {kind}: {source.title}. {said}")
    return lines


def _differences(pairs: Sequence[tuple[Cell, Cell]]) -> list[str]:
    rows = []
    for cell, twin in pairs:
        differences = cell.differences(twin)
        if not differences:
            continue
        values = list(differences.values())
        rows.append(
            [
                f"`{cell.model}` - `{twin.model}`",
                cell.setting,
                str(len(values)),
                signed(statistics.fmean(values)),
                interval(t_interval(values), none="none for n = 1"),
                ", ".join(f"{seed}: {signed(value)}" for seed, value in differences.items()),
            ]
        )
    header = ["networks", "setting", "n", "difference", "95 % interval", "by seed"]
    if not rows:
        return ["No mean-field network and its plain twin have a seed in common yet."]
    return [
        "In points of error, paired by seed; below 0 the mean-field network is better. The",
        "interval is Student's, of n differences: it says how far other seeds would move the mean.",
        "",
        table(header, rows),
    ]


def _settings(chosen: Sequence[Cell]) -> list[str]:
    """Each network's settings beside the first of them; nothing if no network has several."""
    columns = {"error": ("test_error", 2), "loss": ("test_loss", 4)}
    bases, rows = [], []
    for model in dict.fromkeys(cell.model for cell in chosen):
        first, *others = (cell for cell in chosen if cell.model == model)
        if not others:
            continue
        pooled = {
            column: pooled_deviation([cell.values(column) for cell in (first, *others)])
            for column, _ in columns.values()
        }
        spreads = [
            f"{pooled[column][0]:.{digits}f} ({name})"
            for name, (column, digits) in columns.items()
            if pooled[column]
        ]
        spread = " and ".join(spreads) or "not known"
        if pooled["test_error"]:
            spread += f" of {pooled['test_error'][1]} degrees of freedom"
        bases.append(f"- `{model}`: {first.setting}; deviation over seeds {spread}")
        for cell in others:
            row = [f"`{model}`", cell.setting, f"{len(cell.rows)}, {len(first.rows)}"]
            for column, digits in columns.values():
                ours, theirs = cell.values(column), first.values(column)
                if not ours or not theirs:
                    row += ["", ""]
                    continue
                ends = pooled[column] and difference_interval(ours, theirs, *pooled[column])
                row.append(signed(statistics.fmean(ours) - statistics.fmean(theirs), digits))
                row.append(interval(ends, digits))
            rows.append(row)
    if not rows:
        return []
    header = ["model", "setting", "seeds"]
    for name in columns:
        header += [name, "95 % interval"]
    return [
        "Differences of the means; below 0 the setting is better. The intervals are Student's,",
        "with the deviation over seeds pooled over all settings of the network; there are none",
        "where each has one seed. One interval in twenty misses, and the best of many settings",
        "looks better than it is. The first settings:",
        "",
        *bases,
        "",
        table(header, rows),
    ]
