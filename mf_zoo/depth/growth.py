"""Growth in depth in a training of one's own."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from mf_zoo.depth.recalibration import recalibrate
from mf_zoo.depth.resizing import resize


class Grow(keras.callbacks.Callback):
    """Ends `fit` at an epoch and makes the deeper model with which to go on.

    Keras trains one model in a call of `fit`, and depth is part of the model. So the callback stops
    the training after an epoch that it is told, and `fit` is called again, of the new model, with
    `initial_epoch`. The new model is compiled as the old one is, with the state of the optimizer:
    a learning-rate schedule continues where it is.

    Args:
        particles: What to grow to, by the number of the epoch after which (from 1): numbers of
            particles or names of networks, as `mf_zoo.depth.refine` takes them.
        images: Inputs on which `recalibrate` estimates the statistics of BatchNormalization after
            growing; `None` to leave that to the training.
        **arguments: Further arguments of `mf_zoo.depth.resize`, such as `noise`.

    Attributes:
        model: The model to train: once an epoch of growth is over, the new one.
        epoch: The number of epochs that are done; the `initial_epoch` of the next `fit`.

    Raises:
        ValueError: If an epoch is no positive integer, or two would grow at once.

    Example:

    ```python
    import keras

    import mf_zoo

    images, labels = mf_zoo.data.sample("cifar10")
    model = mf_zoo.applications.MFResNet20()
    model.compile(
        mf_zoo.optimizers.MeanFieldSGD(keras.optimizers.schedules.CosineDecay(0.1, 4)),
        "sparse_categorical_crossentropy",
    )
    grow = mf_zoo.depth.Grow({1: "MFResNet32"})
    model.fit(images, labels, batch_size=100, epochs=2, callbacks=[grow])
    grow.model.fit(
        images, labels, batch_size=100, epochs=2, initial_epoch=grow.epoch, callbacks=[grow]
    )
    ```
    """

    def __init__(
        self,
        particles: Mapping[int, str | Sequence[int]],
        images: Any = None,
        **arguments: Any,
    ):
        super().__init__()
        for epoch in particles:
            if isinstance(epoch, bool) or not isinstance(epoch, int) or epoch < 1:
                raise ValueError(
                    "`particles` must say by the number of an epoch, from 1, what to grow to. "
                    f"Received: epoch {epoch!r}"
                )
        self.particles = dict(particles)
        self.images = images
        self.arguments = arguments
        self.epoch = 0
        self._grown: keras.Model | None = None

    @property
    def model(self) -> keras.Model | None:
        return super().model if self._grown is None else self._grown

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._grown = None

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch + 1
        if self.epoch in self.particles:
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        if self.epoch not in self.particles:
            return
        # Now, not at the end of the epoch: by now every backend has written its state back.
        grown = resize(self.model, self.particles[self.epoch], optimizer=True, **self.arguments)
        if self.images is not None:
            recalibrate(grown, self.images)
        self._grown = grown
