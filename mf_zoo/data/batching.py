"""Batches of images for `model.fit`, the same on every backend for the same seed."""

import functools
import warnings
from typing import Any

import keras
import numpy as np

from mf_zoo.data.augmentation import Augmentation
from mf_zoo.data.epochs import EpochDataset, batch_spec, look_ahead

# Streams of random numbers of an epoch; 1 is that of augmentation.
_PERMUTATION, _FIRST_FLIPS = 0, 4


def check_range(images: np.ndarray) -> None:
    """Warns of images that were scaled to 0..1 (or -1..1) beforehand.

    The networks of the zoo take pixels in 0..255 and normalise them themselves: given pixels in
    0..1 they see black. `batches` and `Batches` call this. It looks at the first images, and at all
    of them only if those are suspicious.

    Args:
        images: `(N, height, width, channels)`; only floating-point ones are looked at.

    Example:

    >>> images = mf_zoo.data.sample("cifar10")[0]
    >>> mf_zoo.data.check_range(images.astype("float32"))  # as they should be: says nothing
    """
    if images.dtype.kind != "f" or not images.size:
        return
    if images[:64].max() <= 1 and 0 < np.abs(images).max() <= 1:
        warnings.warn(
            "Images should be in 0..255, as the networks of the zoo normalise them themselves. "
            f"Received: {images.dtype} images from {images.min():.3g} to {images.max():.3g}",
            stacklevel=3,
        )


class Batches(EpochDataset):
    """A dataset of shuffled and augmented batches, made with NumPy as they are asked for.

    Every draw is a function of `(seed, epoch, batch index)` alone, so that every backend sees the
    same batches, and a training that resumes at epoch `k` with `initial_epoch=k` too: see
    `EpochDataset`.

    Args: those of `mf_zoo.data.batches`, but `backend`.

    Attributes:
        epoch: Number of the epoch being handed out; may be set.

    Example:

    ```python
    images, labels = mf_zoo.data.sample("cifar10")
    data = mf_zoo.data.Batches(images, labels, 50, shuffle=True)
    first_images, first_labels = data[0]
    ```
    """

    numbers_images = True

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int = 128,
        *,
        num_classes: int | None = None,
        divisible_by: int = 1,
        part: tuple[int, int] = (0, 1),
        **settings: Any,
    ):
        images, labels = np.asarray(images), np.asarray(labels)
        if images.ndim != 4 or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(
                "`images` must be (N, height, width, channels) and `labels` integers (N,). "
                f"Received: images {images.shape}, labels {labels.dtype} {labels.shape}"
            )
        count = len(images) - len(images) % max(divisible_by, 1)
        super().__init__(count, batch_size, num_classes=num_classes, **settings)
        which, parts = part
        fits = divisible_by >= 1 and divisible_by % parts == 0 == batch_size % divisible_by
        if not (fits and 0 <= which < parts):
            raise ValueError(
                "`part` must be (i, n) with 0 <= i < n, where n divides `divisible_by` and that "
                f"divides `batch_size`. Received: part={part}, divisible_by={divisible_by}, "
                f"batch_size={batch_size}"
            )
        self.part = part
        if self.mixes and (num_classes is None or num_classes <= labels.max(initial=0)):
            raise ValueError(
                "`num_classes` must be given with mixup and CutMix, whose labels are one-hot, and "
                f"be above every label. Received: num_classes={num_classes!r}"
            )
        check_range(images)
        self.images, self.labels = images, labels.astype("int64")
        self._order: tuple[int, np.ndarray] | None = None  # (epoch, its permutation)

    def batch(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch `index` of epoch `epoch`: `(images, labels)`, whatever was asked for before."""
        draw = self.draw(epoch, index)
        window = self._window(len(draw["index"]))
        if self.mixes:  # Images of other parts may be partners of ours.
            batch = self.augmented(self.images[draw["index"]], self.labels[draw["index"]], draw)
            return batch[0][window], batch[1][window]
        draw = {key: values[window] for key, values in draw.items()}
        return self.augmented(self.images[draw["index"]], self.labels[draw["index"]], draw)

    def signature(self) -> tuple[Any, ...]:
        """The `tf.TensorSpec` of each part of a batch."""
        return batch_spec(self, self.images.shape[1:], self.images.dtype, self.part[1])

    def _window(self, count: int) -> slice:
        """Where our part is in a batch of `count` images."""
        which, parts = self.part
        return slice(which * count // parts, (which + 1) * count // parts)

    def draw(self, epoch: int, index: int) -> dict[str, np.ndarray]:
        """What is random in a (whole) batch: which images, and how they are augmented.

        Args:
            epoch: Number of the epoch.
            index: Number of the batch.

        Returns:
            `index`, the numbers of the images `(batch,)`, and what `Augmentation.draw` returns.
        """
        start = index * self.batch_size
        stop = min(start + self.batch_size, self.count)
        chosen = np.arange(start, stop)
        if self.shuffle:
            chosen = self._permutation(epoch)[start:stop]
        draw = self.draw_augmentation(epoch, index, len(chosen), self.images.shape[1:])
        if self.augment is not None and self.augment.alternating_flip:
            draw["flip"] = self._first_flips[chosen] ^ bool(epoch % 2)
        return {"index": chosen, **draw}

    @functools.cached_property
    def _first_flips(self) -> np.ndarray:
        """Which images are mirrored in epoch 0, where flips alternate."""
        return self.generator(0, _FIRST_FLIPS).random(len(self.images)) < 0.5

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            order = self.generator(epoch, _PERMUTATION).permutation(len(self.images))
            self._order = (epoch, order)
            return order
        return self._order[1]


def batches(
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int = 128,
    *,
    shuffle: bool = False,
    augment: Augmentation | None = None,
    seed: int = 0,
    drop_remainder: bool = False,
    backend: str = "auto",
    num_classes: int | None = None,
    initial_epoch: int = 0,
    divisible_by: int = 1,
    part: tuple[int, int] = (0, 1),
) -> Any:
    """Make a dataset for `model.fit`, `evaluate` or `predict` from arrays.

    The batches are the same whatever `backend` is, and the same on every Keras backend: each
    is a function of the seed, the epoch's number and the batch's.

    Args:
        images: `(N, height, width, channels)` in 0..255; uint8 is the cheapest. Of images in 0..1 a
            warning says that the networks of the zoo take others.
        labels: Integers `(N,)`.
        batch_size: Images a batch.
        shuffle: Whether to permute the images, anew each epoch.
        augment: An `Augmentation`, or `None`.
        seed: Non-negative integer from which everything random follows.
        drop_remainder: Whether to leave out a last batch that is not full.
        backend: `"tf"` for a `tf.data.Dataset` (needs TensorFlow), `"pydataset"` for a
            `Batches`; `"auto"` is `"tf"` on Keras's TensorFlow backend.
        num_classes: Number of classes, needed with mixup and CutMix only, whose labels are one-hot.
        initial_epoch: Number of the first epoch: where a training resumes.
        divisible_by: A number that divides `batch_size`. Of a last batch that is not full so many
            images are left out that it divides that too: for batches that several devices share.
        part: `(i, n)`: hand out part `i` of the `n` equal parts of each batch, the same images as
            in the whole batch: for process `i` of `n` that train together.

    Returns:
        A `tf.data.Dataset` or a `Batches` that yields `(images, labels)`: images of the dtype
        given and labels int64 `(batch,)`, or with mixup or CutMix float32 images and
        labels `(batch, num_classes)`. One pass is one epoch. The dataset of `tf.data` reads its
        epoch when a pass starts and moves it on with the last batch of the pass.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    ```python
    images, labels = mf_zoo.data.sample("cifar10")
    augment = mf_zoo.data.Augmentation(padding=4, flip=True)
    data = mf_zoo.data.batches(images, labels, 50, shuffle=True, augment=augment, seed=0)
    model.fit(data, epochs=2)
    ```
    """
    if backend not in ("auto", "tf", "pydataset"):
        raise ValueError(
            f"`backend` must be 'auto', 'tf' or 'pydataset'. Received: backend={backend!r}"
        )
    source = Batches(
        images,
        labels,
        batch_size,
        shuffle=shuffle,
        augment=augment,
        seed=seed,
        drop_remainder=drop_remainder,
        num_classes=num_classes,
        initial_epoch=initial_epoch,
        divisible_by=divisible_by,
        part=part,
    )
    if backend == "auto":
        return for_fit(source)
    return _tf_dataset(source) if backend == "tf" else source


def for_fit(source: Batches) -> Any:
    """What to give `fit`: on TensorFlow a `tf.data.Dataset` of the batches, else the batches.

    Of a `keras.utils.PyDataset` Keras itself makes a dataset for TensorFlow, but one that `tf.data`
    tunes, and the end of each epoch waits for that (see `look_ahead`).
    """
    return _tf_dataset(source) if keras.backend.backend() == "tensorflow" else source


def _tf_dataset(source: Batches) -> Any:
    import tensorflow as tf

    def one_epoch():
        epoch = source.epoch
        for index in range(len(source)):
            batch = source.batch(epoch, index)
            if index == len(source) - 1:
                source.epoch = epoch + 1
            yield batch

    dataset = tf.data.Dataset.from_generator(one_epoch, output_signature=source.signature())
    return look_ahead(dataset, len(source))
