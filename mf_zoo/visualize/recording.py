"""A callback that records what the particles of a model do as it trains."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mf_zoo import devices, files, schemas
from mf_zoo.errors import UserError
from mf_zoo.layers import MeanFieldStage, stages
from mf_zoo.layers.orders import order_swaps

_BINS = 30  # of the histograms


class RecordStages(keras.callbacks.Callback):
    """Records the times, ranks, step sizes and swaps of a model's particles after every epoch.

    For any `model.fit`. Epoch 0 is the state before the first step. A row of the CSV file is a
    particle in an epoch: its `stage`, its number `particle`, its `time`, its `rank` in the depth
    order (0 is applied first), its `step` size `dt`, and `swaps`: how many swaps of neighbours led
    from the stage's depth order in the epoch before to this one (Kendall's tau distance; the same
    in all rows of the stage and epoch). The epoch's logs get `order_swaps`, the sum over the
    stages, so callbacks that come after this one see it.

    A training that begins at epoch 0 begins a new file. One that is resumed,
    `fit(..., initial_epoch=e)` or by `keras.callbacks.BackupAndRestore`, appends to the file, from
    which rows of epoch `e` and later ones are dropped first: so no epoch is there twice, wherever a
    process was killed.

    Where several processes train together, the main one writes.

    Args:
        path: The CSV file, in a folder that is made; `None` writes none.
        tensorboard: A folder for TensorBoard; `None` writes no logs. They hold, for each stage,
            scalars `<stage>/time/<particle>`, `<stage>/step/<particle>`, `<stage>/rank/<particle>`
            and `<stage>/swaps`, and a histogram `<stage>/times` over `[0, T]`, by epoch. It needs
            the package tensorboard.

    Attributes:
        rows: The rows so far, mappings from column to value: what `mf_zoo.visualize.times` and the
            other functions draw when they are given the callback.

    Raises:
        UserError: If TensorBoard logs are asked for and the package is not installed; when the
            training begins, if the CSV file is another one or the model has no stage.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), MeanFieldStage(keras.layers.Dense(4), 2)])
    >>> model.compile("sgd", "mse")
    >>> record = mf_zoo.visualize.RecordStages()
    >>> x = np.ones((8, 4))
    >>> _ = model.fit(x, x, epochs=2, verbose=0, callbacks=[record])
    >>> [(row["epoch"], row["particle"], row["rank"]) for row in record.rows]
    [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1), (2, 0, 0), (2, 1, 1)]
    """

    columns: Sequence[str] = tuple(schemas.RECORDED)

    def __init__(
        self,
        path: str | os.PathLike | None = None,
        tensorboard: str | os.PathLike | None = None,
    ):
        super().__init__()
        self.path = None if path is None else Path(path)
        self.tensorboard = None if tensorboard is None else Path(tensorboard)
        self.rows: list[dict[str, Any]] = []
        self.horizons: dict[str, float] = {}
        self._events: _Events | None = None
        if self.tensorboard is not None:
            _Events.check()

    def on_train_begin(self, logs=None):
        self._stages = named_stages(self.model)
        self.horizons = {name: stage.horizon for name, stage in self._stages.items()}
        self._ranks: dict[str, np.ndarray] = {}
        self._begun = False
        self._check()

    def on_epoch_begin(self, epoch, logs=None):
        if not self._begun:  # only now is it known with which epoch
            self._begun = True
            self._begin(epoch)

    def on_epoch_end(self, epoch, logs=None):
        swaps = self._record(epoch + 1)
        if logs is not None:
            logs["order_swaps"] = swaps

    def on_train_end(self, logs=None):
        if self._events is not None:
            self._events.close()
            self._events = None

    def _check(self) -> None:
        """Refuses, before any step, what could not be recorded."""
        if not self._stages:
            raise UserError(
                "RecordStages needs a model with a MeanFieldStage. "
                f"Received: model={self.model.name!r} without one"
            )
        if self.path is None or not self._writes:
            return
        with files.writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        header = ",".join(self.columns) + "\n"
        if self._first_line() not in (header, ""):
            raise UserError(
                f"`path` must be a new file, or one with the columns {', '.join(self.columns)}. "
                f"Received: path={self.path}, which begins with {self._first_line()[:100]!r}"
            )

    def _first_line(self) -> str:
        if not self.path.exists():
            return ""
        with open(self.path, encoding="utf-8", errors="replace") as file:
            return file.readline()

    @property
    def _writes(self) -> bool:
        return devices.is_main()

    def _begin(self, epoch: int) -> None:
        """Has rows and file hold what was before `epoch`, and then the state at its start."""
        if self.path is None or not self._writes:
            self.rows = [row for row in self.rows if row["epoch"] < epoch]
        elif epoch == 0:
            self.rows = []
            with files.writing(self.path):
                self.path.unlink(missing_ok=True)
        else:
            files.drop_rows_after(self.path, epoch - 1)
            self.rows = [_typed(row) for row in files.read_rows(self.path, "recorded")]
        if self.tensorboard is not None and self._writes:
            self._events = _Events(self.tensorboard, epoch)
        before: dict[str, list[int]] = {}
        for row in self.rows:
            if row["epoch"] == epoch - 1:
                before.setdefault(row["stage"], []).append(row["rank"])
        self._ranks = {name: np.array(ranks) for name, ranks in before.items()}
        self._record(epoch)

    def _measure(self) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Times, ranks and steps of each stage, entry `i` of particle `i`."""
        times, ranks, steps = {}, {}, {}
        for name, stage in self._stages.items():
            order = keras.ops.convert_to_numpy(stage.depth_order())
            ranks[name] = np.argsort(order)
            times[name] = keras.ops.convert_to_numpy(stage.times)
            steps[name] = keras.ops.convert_to_numpy(stage.step_sizes())[ranks[name]]
        return times, ranks, steps

    def _record(self, epoch: int) -> int:
        """Records the state after `epoch`; returns the swaps since the one before."""
        before, (times, self._ranks, steps) = self._ranks, self._measure()
        total, rows = 0, []
        for name, ranks in self._ranks.items():
            earlier = before.get(name)
            if earlier is None or len(earlier) != len(ranks):  # the first epoch that is recorded
                earlier = ranks
            swaps = order_swaps(np.argsort(earlier), np.argsort(ranks))
            total += swaps
            values = (times[name].tolist(), ranks.tolist(), steps[name].tolist())
            rows += [
                {
                    "epoch": epoch,
                    "stage": name,
                    "particle": i,
                    "time": time,
                    "rank": rank,
                    "step": step,
                    "swaps": swaps,
                }
                for i, (time, rank, step) in enumerate(zip(*values, strict=True))
            ]
        self.rows += rows
        if self.path is not None and self._writes:
            kept = ({column: row[column] for column in self.columns} for row in rows)
            files.append_rows(self.path, kept, self.columns)
        if self._events is not None:
            self._events.write(rows, self.horizons)
        return total


def named_stages(model: keras.Model) -> dict[str, MeanFieldStage]:
    """The stages of a model by name, from input to output; by path where two have one name."""
    found = stages(model)
    names = [stage.name for stage in found]
    return {stage.name if names.count(stage.name) == 1 else stage.path: stage for stage in found}


def _typed(row: dict[str, str]) -> dict[str, Any]:
    whole = ("epoch", "particle", "rank", "swaps")
    return {
        key: value if key == "stage" else int(value) if key in whole else float(value)
        for key, value in row.items()
    }


class _Events:
    """A file of TensorBoard events, of a training that begins with an epoch."""

    def __init__(self, folder: Path, epoch: int):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event = Event
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._writer = EventFileWriter(str(folder), filename_suffix=".stages")
        # Of a training that is resumed, TensorBoard then forgets what it logged from here on.
        self._add(epoch, session_log=SessionLog(status=SessionLog.START))

    @staticmethod
    def check() -> None:
        try:
            import tensorboard  # noqa: F401
        except ImportError as error:
            raise UserError(
                "TensorBoard logs need the package tensorboard: pip install "
                f"'mf_zoo[tensorboard]'. Received: {error}"
            ) from error

    def _add(self, epoch: int, **content: Any) -> None:
        self._writer.add_event(self._event(wall_time=time.time(), step=epoch, **content))

    def write(self, rows: Sequence[dict[str, Any]], horizons: dict[str, float]) -> None:
        from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary

        values = []
        for name, horizon in horizons.items():
            own = [row for row in rows if row["stage"] == name]
            scalars = {f"{kind}/{r['particle']}": r[kind] for kind in _SCALARS for r in own}
            scalars["swaps"] = own[0]["swaps"]
            values += [
                Summary.Value(tag=f"{name}/{tag}", simple_value=value)
                for tag, value in scalars.items()
            ]
            times = np.array([row["time"] for row in own])
            counts, edges = np.histogram(times, _BINS, (0.0, horizon))
            histogram = HistogramProto(
                min=times.min(),
                max=times.max(),
                num=len(times),
                sum=times.sum(),
                sum_squares=np.square(times).sum(),
                bucket_limit=edges,
                bucket=[0, *counts],  # a bucket ends at its limit: before the first there is none
            )
            values.append(Summary.Value(tag=f"{name}/times", histo=histogram))
        self._add(rows[0]["epoch"], summary=Summary(value=values))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


_SCALARS = ("time", "step", "rank")
