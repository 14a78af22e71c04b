"""The history of the particles' times, read from whatever it was recorded in."""

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mf_zoo import files
from mf_zoo.layers import quadrature as quadrature_rules
from mf_zoo.layers.orders import order_swaps

# Names in a run folder, and ends of names beside registered weights.
_TIMES, _HISTORY, _CONFIG = "times.csv", "history.csv", "config.json"
_MOST_CELLS = 10_000_000  # of epochs and particles
_RECORDED = {"epoch", "stage", "particle", "time"}
_SWAPS = {"epoch", "order_swaps"}


@dataclasses.dataclass(frozen=True, eq=False)
class StageHistory:
    """What the particles of a stage did, `E` epochs and `n` particles.

    Args:
        name: Name of the stage.
        epochs: int64 `(E,)`, ascending; epoch 0 is before the first step of the training.
        times: float64 `(E, n)`, in units of time; column `i` is particle `i`, NaN in an epoch in
            which it was not there.
        ranks: float64 `(E, n)`: the particle's place in the depth order, from 0; NaN likewise.
        steps: float64 `(E, n)`, in units of time: the particle's step size; `None` if neither the
            history nor the caller says by which rule.
        horizon: Length `T` of the time interval; the number of particles if nothing says.
    """

    name: str
    epochs: np.ndarray
    times: np.ndarray
    ranks: np.ndarray
    steps: np.ndarray | None
    horizon: float

    def swaps(self) -> np.ndarray:
        """Swaps in the depth order since the epoch before, int64 `(E,)`: Kendall's tau distances.

        An epoch in which particles were added has none, for then their numbers are new.
        """
        found = np.zeros(len(self.epochs), "int64")
        there = ~np.isnan(self.ranks)
        for k in range(1, len(found)):
            if np.array_equal(there[k - 1], there[k]):
                before, after = (self.ranks[j][there[k]] for j in (k - 1, k))
                found[k] = order_swaps(np.argsort(before), np.argsort(after))
        return found


def read(
    history: Any, quadrature: Any = None, horizon: float | None = None
) -> dict[str, StageHistory]:
    """Reads a history of times.

    Args:
        history: One of

            - the folder of a run (`mf-zoo train --output`);
            - a CSV file: the `times.csv` of a run, that of registered weights
              (`weights/*.times.csv`), that of a campaign's results, or what `RecordStages` wrote;
            - a `RecordStages` callback;
            - rows of such a file: mappings with the columns `epoch`, `stage`, `particle` and `time`
              and, if they are known, `rank` and `step`; or with `epoch` and a column
              `<stage>/<particle>` of times for each particle, which need not repeat an epoch that
              changed none;
            - a `pandas.DataFrame` of such rows.
        quadrature: Rule of the steps, as `MeanFieldStage` takes it; `None` for the one that is
            recorded in the run folder or in the record of the weights.
        horizon: Length `T` of the time interval; `None` for what is recorded, else for each stage's
            number of particles.

    Returns:
        A `StageHistory` for each stage, by its name, from input to output.

    Raises:
        ValueError: If it is none of these.

    Example:

    >>> rows = [{"epoch": 0, "stage1/0": 1.0, "stage1/1": 2.0}]
    >>> rows += [{"epoch": 3, "stage1/0": 1.75, "stage1/1": 1.25}]
    >>> stage = mf_zoo.visualize.read(rows, quadrature="backward")["stage1"]
    >>> stage.epochs.tolist(), stage.ranks[-1].tolist(), stage.steps[-1].tolist()
    ([0, 1, 2, 3], [1.0, 0.0], [0.5, 1.25])
    >>> stage.swaps().tolist()
    [0, 0, 0, 1]
    """
    rows, said = _rows(history), _recorded(history)
    try:
        tables = _long(rows) if set(rows[0]) >= _RECORDED else _wide(rows)
    except (TypeError, ValueError, AttributeError) as error:
        raise _refused(history, f", where {error}") from error
    if quadrature is None and said is not None:
        quadrature = said[0]
    if horizon is None and said is not None:
        horizon = said[1]
    return {
        name: _stage(name, *table, quadrature, horizon, getattr(history, "horizons", {}))
        for name, table in tables.items()
    }


def read_swaps(history: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """The swaps that a run counted itself, over all its stages; `None` if it did not.

    Args:
        history: As in `read`; also a `history.csv` of a run, or rows with the columns `epoch` and
            `order_swaps`.

    Returns:
        `(epochs, swaps)`, int64 both: the swaps of each epoch.
    """
    path = _path(history)
    if path is not None and path.is_dir():
        rows = files.read_rows(path / _HISTORY, "shared", growing=True)
    else:
        rows = _rows(history)
    if not rows or not set(rows[0]) >= _SWAPS:
        return None
    return tuple(
        np.array([int(row[key]) for row in rows], "int64") for key in ("epoch", "order_swaps")
    )


def _refused(history: Any, why: str = "") -> ValueError:
    return ValueError(
        "`history` must be the folder of a run, a CSV file of times, a RecordStages callback, or "
        "rows with the columns epoch, stage, particle and time, or epoch and <stage>/<particle>. "
        f"Received: {history if _path(history) is not None else type(history).__name__}{why}"
    )


def _path(history: Any) -> Path | None:
    return Path(history) if isinstance(history, (str, os.PathLike)) else None


def _rows(history: Any) -> list[Mapping[str, Any]]:
    path = _path(history)
    if path is not None:
        file = path / _TIMES if path.is_dir() else path
        rows: Any = files.read_rows(file, "shared", growing=path.is_dir())
    elif hasattr(history, "to_dict"):  # pandas
        rows = history.to_dict("records")
    else:
        rows = getattr(history, "rows", history)
    if not isinstance(rows, Iterable):
        raise _refused(history)
    rows = list(rows)
    if not rows or not all(isinstance(row, Mapping) and "epoch" in row for row in rows):
        raise _refused(history, " without rows of epochs")
    return rows


def _recorded(history: Any) -> tuple[Any, float | None] | None:
    """Quadrature rule and horizon that stand beside a history, if they do."""
    path = _path(history)
    if path is None:
        return None
    if path.is_dir() or path.name == _TIMES:
        folder = path if path.is_dir() else path.parent
        found = (files.read_json(folder / _CONFIG, "recipe") or {}).get("recipe")
    else:  # beside a record of weights
        name = path.name.removesuffix(f".{_TIMES}") + ".json"
        found = files.read_json(path.with_name(name), "record")
    if not found or found.get("quadrature") is None:
        return None
    return found["quadrature"], found.get("horizon")


def _number(value: Any) -> float:
    return float("nan") if value is None or value == "" else float(value)


def _long(rows: list[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, ...]]:
    """Epochs, times, ranks and steps by stage, from a row for each epoch and particle."""
    cells: dict[str, dict[tuple[int, int], Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault(row["stage"], {})[int(row["epoch"]), int(row["particle"])] = row
    tables = {}
    for name, found in cells.items():
        epochs = np.array(sorted({epoch for epoch, _ in found}), "int64")
        _check_room(len(epochs), max(i for _, i in found))
        index = {int(epoch): k for k, epoch in enumerate(epochs)}
        columns = np.full((3, len(epochs), 1 + max(i for _, i in found)), np.nan)
        for (epoch, i), row in found.items():
            columns[:, index[epoch], i] = [_number(row.get(k)) for k in ("time", "rank", "step")]
        tables[name] = (epochs, *columns)
    return tables


def _check_room(epochs: int, particle: int) -> None:
    """Refuses numbers that would take gigabytes, though there are a few rows only."""
    if epochs * (particle + 1) > _MOST_CELLS:
        raise ValueError(
            f"a history of {epochs} epochs and {particle + 1} particles is of more than "
            f"{_MOST_CELLS} times"
        )


def _wide(rows: list[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, ...]]:
    """The same from a row for each epoch that changed any time."""
    known: dict[str, dict[int, str]] = {}
    for column in (column for row in rows for column in row if "/" in str(column)):
        name, _, particle = column.rpartition("/")
        known.setdefault(name, {})[int(particle)] = column
    if not known:
        raise ValueError("no column is named <stage>/<particle>")
    by_epoch = {int(row["epoch"]): row for row in rows}
    first, last = min(by_epoch), max(by_epoch)
    for columns in known.values():
        _check_room(last - first + 1, max(columns))
    epochs = np.arange(first, last + 1)
    tables = {}
    for name, columns in known.items():
        times = np.full((len(epochs), 1 + max(columns)), np.nan)
        for k, epoch in enumerate(epochs.tolist()):
            if epoch in by_epoch:
                row = by_epoch[epoch]
                for i, column in columns.items():
                    times[k, i] = _number(row.get(column))
            else:
                times[k] = times[k - 1]
        unknown = np.full_like(times, np.nan)
        tables[name] = (epochs, times, unknown, unknown)
    return tables


def _stage(
    name: str,
    epochs: np.ndarray,
    times: np.ndarray,
    ranks: np.ndarray,
    steps: np.ndarray,
    quadrature: Any,
    horizon: float | None,
    horizons: Mapping[str, float],
) -> StageHistory:
    there = ~np.isnan(times)
    ranks = ranks.copy()
    for k in range(len(epochs)):
        if np.isnan(ranks[k][there[k]]).any():
            order = np.argsort(times[k][there[k]], kind="stable")
            ranks[k, there[k]] = np.argsort(order)
    if horizon is None:
        horizon = horizons.get(name)
    if quadrature is not None or np.isnan(steps[there]).any():
        steps = None if quadrature is None else _steps(times, ranks, quadrature, horizon)
    if horizon is None:
        horizon = float(there[-1].sum())
    return StageHistory(name, epochs, times, ranks, steps, float(horizon))


def _steps(
    times: np.ndarray, ranks: np.ndarray, quadrature: Any, horizon: float | None
) -> np.ndarray:
    """The step size of each particle in each epoch."""
    import keras

    rule = quadrature_rules.get(quadrature)
    steps = np.full_like(times, np.nan)
    for row, places, into in zip(times, ranks, steps, strict=True):
        there = np.flatnonzero(~np.isnan(row))
        ascending = keras.ops.convert_to_tensor(np.sort(row[there]), "float32")
        length = float(len(there) if horizon is None else horizon)
        found = np.asarray(keras.ops.convert_to_numpy(rule(ascending, length)), "float64")
        into[there] = found[places[there].astype("int64")]
    return steps
