"""A training that records its stages, and that may kill its process."""

import os
import pathlib
import signal

import keras
import numpy as np

from mf_zoo import files
from mf_zoo.layers import MeanFieldStage
from mf_zoo.visualize import RecordStages

# The times of stage "a" (3 particles) and "b" (2) after each epoch, exact in binary.
TIMES = {
    "a": [[1, 2, 3], [1, 2.5, 2.25], [2.75, 2.5, 1.5], [0.5, 2.5, 1.5], [0.5, 0.25, 1.5]],
    "b": [[1, 2], [1, 1.5], [1.75, 1.5], [0.25, 1.5], [0.25, 0.5]],
}
EPOCHS = len(TIMES["a"]) - 1


class SetTimes(keras.callbacks.Callback):
    """Moves the particles as TIMES says."""

    def on_epoch_end(self, epoch, logs=None):
        for name, times in TIMES.items():
            self.model.get_layer(name).times.assign(times[epoch + 1])


class Kill(keras.callbacks.Callback):
    """Kills the process in the third epoch.

    `when` is `"step"` (in a step), `"row"` (within a row that is being written) or `"rows"` (after
    all are written, before the checkpoint is).
    """

    def __init__(self, when):
        super().__init__()
        self.when = when

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        if epoch == 2 and self.when == "row":
            files.append_rows = self._cut

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 2 and self.when == "step":
            self._kill()

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 2 and self.when == "rows":
            self._kill()

    def _cut(self, path, rows, columns):
        first, second = list(rows)[:2]
        with open(path, "a", newline="") as file:
            file.write(",".join(str(first[c]) for c in columns) + "\n")
            file.write(",".join(str(second[c]) for c in columns)[:-3])
        self._kill()

    def _kill(self):
        os.kill(os.getpid(), signal.SIGKILL)


def model():
    layers = [
        MeanFieldStage(keras.layers.Dense(4), len(times[0]), initial_times=times[0], name=name)
        for name, times in TIMES.items()
    ]
    network = keras.Sequential([keras.Input((4,)), *layers])
    network.compile("sgd", "mse")
    return network


def main(folder, when="-"):
    """Trains, from the checkpoint in the folder if there is one.

    Returns:
        The recorder and what `fit` returned.
    """
    folder = pathlib.Path(folder)
    recorder = RecordStages(folder / "new" / "stages.csv", folder / "logs")
    x = np.ones((8, 4), "float32")
    callbacks = [SetTimes(), recorder, Kill(when)]
    callbacks.append(keras.callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False))
    history = model().fit(
        x, x, batch_size=4, epochs=EPOCHS, shuffle=False, verbose=0, callbacks=callbacks
    )
    return recorder, history
