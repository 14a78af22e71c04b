"""Callbacks of a run: learning rate, order of the particles, history, checkpoints."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mf_zoo import devices, files, schemas
from mf_zoo.errors import UserError
from mf_zoo.layers.orders import order_swaps as order_swaps
from mf_zoo.training import runs
from mf_zoo.visualize import RecordStages

HISTORY_COLUMNS = tuple(schemas.HISTORY)
TIMES_COLUMNS = tuple(schemas.TIMES)


class DepthOrder(RecordStages):
    """Writes the particles' times and ranks, and adds `order_swaps` to the epoch's logs.

    Epoch 0 is the state before the first step. Swaps are counted against the epoch before,
    summed over the stages. The run folder says with which epoch its files end.

    Args:
        path: The CSV file that rows of (epoch, stage, particle, time, rank) are appended to;
            `None` writes none.
    """

    columns = TIMES_COLUMNS
    _writes = True  # it has a path in the main process only

    def _check(self):
        """A network of one's own may have no stage."""

    def _begin(self, epoch: int):
        if self.path is not None and not self.path.exists():
            self._record(0)
        else:
            self._ranks = self._measure()[1]


class History(keras.callbacks.Callback):
    """Appends a row for each epoch to a CSV file.

    `learning_rate` is that of the epoch's last step, `seconds` the time of its training steps
    without evaluation, `test_error` in percent; the columns of the test are empty in an epoch
    without one. Adds `learning_rate` to the epoch's logs. A loss that is no finite number ends
    the training with a `UserError`, before it reaches a checkpoint; it names the last one.

    Args:
        path: The CSV file; `None` writes none.
        images: Number of training images in an epoch.
    """

    def __init__(self, path: Path | None, images: int):
        super().__init__()
        self.path = path
        self.images = images

    def on_epoch_begin(self, epoch, logs=None):
        self._begin, self._end = time.perf_counter(), None

    def on_test_begin(self, logs=None):
        self._end = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        # A millisecond at least, whatever the clock says: it is divided by.
        end = time.perf_counter() if self._end is None else self._end
        seconds = max(end - self._begin, 0.001)
        logs = {} if logs is None else logs
        logs["learning_rate"] = last_learning_rate(self.model.optimizer)
        row: dict[str, Any] = {
            "epoch": epoch + 1,
            "learning_rate": logs["learning_rate"],
            "loss": logs.get("loss"),
            "accuracy": logs.get("accuracy"),
            "test_loss": logs.get("val_nll"),
            "test_error": 100 * (1 - logs["val_accuracy"]) if "val_accuracy" in logs else None,
            "seconds": round(seconds, 3),
            "images_per_second": round(self.images / seconds, 1),
            "order_swaps": logs.get("order_swaps", 0),
        }
        if self.path is not None:
            files.append_rows(self.path, [row], HISTORY_COLUMNS)
        if not np.isfinite(logs.get("loss", 0.0)):
            raise UserError(
                f"The training diverged{self._last_good()}; begin again in another folder, with a "
                f"lower learning rate. Received: loss={logs['loss']} in epoch {epoch + 1}"
            )

    def _last_good(self) -> str:
        """What a message says of the last checkpoint."""
        if self.path is None:  # not the main process, which writes them
            return ""
        state = files.read_json(self.path.parent / runs.STATE, "state")
        if state is None:
            return ", and there is no checkpoint yet"
        path = self.path.parent / state["checkpoint"]
        return f"; the last good checkpoint is {path}, of epoch {state['epoch']}"


class AverageLogs(keras.callbacks.Callback):
    """Averages an epoch's logs over the processes that each saw a part of the images.

    Args:
        group: The `mf_zoo.training.distribution.Group`.
        weight: Weight of this process's validation logs in the mean.
    """

    def __init__(self, group: Any, weight: float):
        super().__init__()
        self.group = group
        self.weight = weight

    def on_epoch_end(self, epoch, logs=None):
        keys = sorted(logs)
        weights = [self.weight if key.startswith("val_") else 1.0 for key in keys]
        values = np.asarray([logs[key] for key in keys], "float64")
        means = self.group.mean(values * np.asarray(weights))
        logs.update(zip(keys, means.tolist(), strict=True))


def last_learning_rate(optimizer: keras.optimizers.Optimizer) -> float:
    """Returns the learning rate of the step an optimizer made last."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    rate = optimizer._learning_rate
    if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
        step = int(keras.ops.convert_to_numpy(optimizer.iterations))
        rate = rate(max(step - 1, 0))
    return float(keras.ops.convert_to_numpy(rate))


def random_states(model: keras.Model) -> list[keras.Variable]:
    """Returns the states of a model's random generators (dropout's, for one).

    Keras 3.15 leaves them out of a `.keras` file.
    """
    saved = {id(variable) for variable in (*model.weights, *model.metrics_variables)}
    return [variable for variable in model.variables if id(variable) not in saved]


class Checkpoint(keras.callbacks.Callback):
    """Saves the whole model, with the optimizer's state, after every epoch.

    `state.json` names the checkpoint that counts, with its SHA-256 and the states of the model's
    random generators, and is replaced last: a run killed at any moment resumes from a complete
    checkpoint. The one before is kept, and named under `"before"`, for one that gets damaged.

    Args:
        folder: The run folder.
        group: The `mf_zoo.training.distribution.Group` that trains; this is its main process.
        state: The state that the run was resumed from; `None` for one that begins.
    """

    def __init__(self, folder: Path, group: Any, state: Mapping[str, Any] | None = None):
        super().__init__()
        self.folder = folder
        self.group = group
        self.state = None if state is None else dict(state)

    def on_epoch_end(self, epoch, logs=None):
        path = self.folder / f"checkpoint-{epoch + 1:04d}.keras"
        with self.group.alone():
            digest = files.write_atomically(path, self.model.save)
        before = self.state
        if before is not None:
            before = {key: value for key, value in before.items() if key != "before"}
        self.state = {
            "epoch": epoch + 1,
            "checkpoint": path.name,
            "sha256": digest,
            "random_states": [
                keras.ops.convert_to_numpy(variable).tolist()
                for variable in random_states(self.model)
            ],
            "date": devices.now(),
            "before": before,
        }
        files.write_json(self.folder / runs.STATE, self.state)
        kept = {path.name, before["checkpoint"] if before else None}
        with files.writing(self.folder):
            for other in self.folder.glob("*checkpoint-*.keras"):
                if other.name not in kept:
                    os.unlink(other)


class SetEpoch(keras.callbacks.Callback):
    """Makes everything random in an epoch a function of the seed and the epoch.

    The batches are by themselves. Keras's dropout on PyTorch draws from the global generator,
    which no checkpoint keeps.

    Args:
        batches: A dataset whose `epoch` is set.
        seed: The seed of the run.
    """

    def __init__(self, batches: Any, seed: int):
        super().__init__()
        self.batches = batches
        self.seed = seed

    def on_epoch_begin(self, epoch, logs=None):
        self.batches.epoch = epoch
        keras.utils.set_random_seed(
            int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        )


def tensorboard_logs(folder: Path) -> keras.callbacks.Callback:
    """Keras's callback that writes TensorBoard logs to a folder.

    Raises:
        UserError: If TensorFlow or TensorBoard is not installed.
    """
    try:
        import tensorboard  # noqa: F401
        import tensorflow  # noqa: F401  # Keras's callback writes through it on every backend.
    except ImportError as error:
        raise UserError(
            f"TensorBoard logs need the packages tensorflow and tensorboard. Received: {error}"
        ) from error
    return keras.callbacks.TensorBoard(str(folder), write_graph=False)
