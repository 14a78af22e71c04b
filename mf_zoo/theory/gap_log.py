"""The gap between a ResNet's gradients and its ensemble's, along a training."""

from typing import Any

import keras

from mf_zoo.theory.gap import gradient_gap


class GradientGapLog(keras.callbacks.Callback):
    """Measures `gradient_gap` before the first step of a training and every few steps after.

    It always measures in inference mode, as `gradient_gap` does by default, and on the same
    samples: a few hundred are enough. The training itself is not changed.

    Args:
        x, y, loss, batch_size: As of `gradient_gap`; `x` cannot be a generator, which is gone after
            the first time.
        every: Number of training steps from one measurement to the next.

    Attributes:
        rows: A dictionary for each stage and measurement, with the keys `step` (steps made so
            far), `stage`, `ratio`, `times_ratio` (as of `StageGap`), `loss` and `ensemble_loss` (as
            of `GradientGap`).

    Raises:
        ValueError: If `every` is no positive integer.

    Example:

    >>> model = keras.Sequential([keras.Input((4,))])
    >>> model.add(mf_zoo.layers.MeanFieldStage(mf_zoo.theory.ResidualUnit(2), 3))
    >>> model.compile("sgd", "mse")
    >>> x, y = np.ones((8, 4)), np.zeros((8, 4))
    >>> log = mf_zoo.theory.GradientGapLog(x, y, "mse", every=2)
    >>> history = model.fit(x, y, batch_size=2, verbose=0, callbacks=[log])
    >>> [row["step"] for row in log.rows]
    [0, 2, 4]
    """

    def __init__(
        self,
        x: Any,
        y: Any = None,
        loss: Any = "sparse_categorical_crossentropy",
        every: int = 10,
        batch_size: int = 128,
    ):
        super().__init__()
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"`every` must be a positive integer. Received: every={every!r}")
        self.x, self.y, self.loss, self.every = x, y, loss, every
        self.batch_size = batch_size
        self.rows: list[dict[str, Any]] = []
        self._steps = 0

    def on_train_begin(self, logs: Any = None) -> None:
        self._measure()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._steps += 1
        if self._steps % self.every == 0:
            self._measure()

    def _measure(self) -> None:
        gap = gradient_gap(self.model, self.x, self.y, self.loss, self.batch_size)
        self.rows += [
            {
                "step": self._steps,
                "stage": stage.stage,
                "ratio": stage.ratio,
                "times_ratio": stage.times_ratio,
                "loss": gap.loss,
                "ensemble_loss": gap.ensemble_loss,
            }
            for stage in gap.stages
        ]
