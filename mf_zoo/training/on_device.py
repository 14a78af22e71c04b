"""Whole epochs in one dispatch, with the images on the device (JAX)."""

import functools
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.data import Batches


class Epochs(keras.utils.PyDataset):
    """The draws of an epoch's batches, instead of the batches themselves.

    Item 0 stands for all full batches, item 1 for the last one if it is not full: the indices of
    the images and the parameters of their augmentation, stacked along the steps. They are the
    draws of `mf_zoo.data.Batches`, a function of seed, epoch and batch.

    Args:
        batches: The batches to stand for; `epoch` is theirs.
    """

    def __init__(self, batches: Batches):
        super().__init__(workers=1, use_multiprocessing=False)
        self.batches = batches
        full = len(batches.images) // batches.batch_size
        self._parts = [range(full), range(full, len(batches))]
        self._parts = [part for part in self._parts if len(part)]

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray]]:
        batches = self.batches
        draws = [batches.draw(batches.epoch, step) for step in self._parts[index]]
        return ({key: np.stack([draw[key] for draw in draws]) for key in draws[0]},)


def train_on_device(model: keras.Model, batches: Batches) -> Epochs:
    """Prepares a model so that `fit` runs all steps of an epoch in one dispatch on the device.

    The images stay on the device, and the steps, Keras's own `train_step` each, run in a
    `jax.lax.scan`; host and device meet once an epoch. The batches are those that `batches` would
    hand out.

    Args:
        model: A compiled model whose metrics are built (by `evaluate`, say), on the JAX backend.
        batches: Its training data.

    Returns:
        The dataset to pass to `fit`, with `shuffle=False`.

    Raises:
        ValueError: On another backend.
    """
    if keras.config.backend() != "jax":
        raise ValueError(
            f"Training on the device needs the JAX backend. Received: {keras.config.backend()}"
        )
    import jax

    augment, classes = batches.augment, batches.num_classes

    def step(images: Any, labels: Any, carry: Any, draw: dict[str, Any]) -> tuple[Any, Any]:
        x = ops.take(images, draw["index"], axis=0)
        y = ops.take(labels, draw["index"], axis=0)
        if augment is not None:
            x = augment.transform_images(x, draw)
            if batches.mixes:
                x, y = augment.mix(x, ops.one_hot(y, classes), draw)
        logs, state = model.train_step(carry, (x, y))
        return state, logs

    @functools.partial(jax.jit, donate_argnums=0)
    def steps(state: Any, images: Any, labels: Any, draws: dict[str, Any]) -> tuple[Any, Any]:
        state, logs = jax.lax.scan(functools.partial(step, images, labels), state, draws)
        # Metrics run on over the epoch: those of the last step are the epoch's.
        return jax.tree.map(lambda values: values[-1], logs), state

    images, labels = jax.device_put((batches.images, batches.labels))

    def train_function(state: Any, iterator: Any) -> tuple[Any, Any]:
        (draws,) = next(iterator)
        return steps(state, images, labels, draws)

    model.train_function = train_function
    return Epochs(batches)
