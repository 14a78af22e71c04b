"""Batches of images for `model.fit`, the same on every backend for the same seed."""

from typing import Any

import keras
import numpy as np

from mf_zoo.data.augmentation import Augmentation

_PERMUTATION, _AUGMENTATION = 0, 1  # the streams of random numbers of an epoch


class Batches(keras.utils.PyDataset):
    """A dataset of shuffled and augmented batches, made with NumPy as they are asked for.

    Every draw is a function of `(seed, epoch, batch index)` alone. So a training that is
    interrupted and goes on at epoch `k` with `initial_epoch=k` sees the very batches it would
    have seen, and so does every backend.

    Within an epoch of `model.fit` the batches are handed out in order, whichever is asked for:
    `fit(shuffle=True)`, its default, would otherwise ask in an order drawn from Python's own
    generator, and no seed would repeat a run. `fit` also moves the epoch on. (Keras calls
    `on_epoch_end` once more before the first epoch, and may try one batch to build a model;
    neither counts, unless the dataset has only that batch.) There are no workers of Keras that
    could run ahead into the next epoch. To look at a batch in the meantime, call `batch`.

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

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int = 128,
        *,
        shuffle: bool = False,
        augment: Augmentation | None = None,
        seed: int = 0,
        drop_remainder: bool = False,
        num_classes: int | None = None,
        initial_epoch: int = 0,
        divisible_by: int = 1,
        part: tuple[int, int] = (0, 1),
    ):
        super().__init__(workers=1, use_multiprocessing=False)
        images, labels = np.asarray(images), np.asarray(labels)
        if images.ndim != 4 or labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(
                "`images` must be (N, height, width, channels) and `labels` integers (N,). "
                f"Received: images {images.shape}, labels {labels.dtype} {labels.shape}"
            )
        for label, value, low in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("initial_epoch", initial_epoch, 0),
            ("divisible_by", divisible_by, 1),
        ):
            if not isinstance(value, (int, np.integer)) or value < low:
                raise ValueError(f"`{label}` must be an integer >= {low}. Received: {value!r}")
        if augment is not None and not isinstance(augment, Augmentation):
            raise ValueError(
                f"`augment` must be an mf_zoo.data.Augmentation or None. Received: {augment!r}"
            )
        self.mixes = augment is not None and augment.mixup > 0
        if self.mixes and (num_classes is None or num_classes <= labels.max(initial=0)):
            raise ValueError(
                "`num_classes` must be given with mixup, whose labels are one-hot, and be above "
                f"every label. Received: num_classes={num_classes!r}"
            )
        which, parts = part
        if not 0 <= which < parts or divisible_by % parts or batch_size % divisible_by:
            raise ValueError(
                "`part` must be (i, n) with 0 <= i < n, where n divides `divisible_by` and that "
                f"divides `batch_size`. Received: part={part}, divisible_by={divisible_by}, "
                f"batch_size={batch_size}"
            )
        self.images, self.labels = images, labels.astype("int64")
        self.batch_size = int(batch_size)
        self.shuffle = bool(shuffle)
        self.augment = augment
        self.seed = int(seed)
        self.drop_remainder = bool(drop_remainder)
        self.num_classes = num_classes
        self.part = part
        # The number of images that an epoch hands out.
        self.images_per_epoch = len(images) - len(images) % (
            batch_size if drop_remainder else divisible_by
        )
        self.epoch = int(initial_epoch)
        self._order: tuple[int, np.ndarray] | None = None  # (epoch, its permutation)
        self._handed_out: int | None = None  # batches of the epoch `fit` is in
        if not len(self):
            raise ValueError(
                f"There must be at least one batch. Received: {len(images)} images, "
                f"batch_size={batch_size}, drop_remainder={drop_remainder}, "
                f"divisible_by={divisible_by}"
            )

    def __len__(self) -> int:
        return -(-self.images_per_epoch // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} batches. Received: index={index}")
        if self._handed_out is not None:
            index = self._handed_out % len(self)
            self._handed_out += 1
        return self.batch(self.epoch, index)

    def batch(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch `index` of epoch `epoch`: `(images, labels)`, whatever was asked for before."""
        draw = self.draw(epoch, index)
        if not self.mixes:  # Else partners may be in other parts.
            draw = {key: values[self._window(len(values))] for key, values in draw.items()}
        images, labels = self.images[draw["index"]], self.labels[draw["index"]]
        if self.augment is not None:
            images = self.augment.transform_images(images, draw)
            if self.mixes:
                one_hot = np.eye(self.num_classes, dtype="float32")[labels]
                images, labels = self.augment.mix(images, one_hot, draw)
                window = self._window(len(images))
                images, labels = images[window], labels[window]
        return images, labels

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
        stop = min(start + self.batch_size, self.images_per_epoch)
        chosen = np.arange(start, stop)
        if self.shuffle:
            chosen = self._permutation(epoch)[start:stop]
        draw = {"index": chosen}
        if self.augment is not None:
            rng = self._generator(epoch, _AUGMENTATION, index)
            draw |= self.augment.draw(rng, len(chosen), self.images.shape[1:])
        return draw

    def _generator(self, *stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, *stream])))

    def _permutation(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            order = self._generator(epoch, _PERMUTATION).permutation(len(self.images))
            self._order = (epoch, order)
            return order
        return self._order[1]

    def on_epoch_begin(self) -> None:
        self._handed_out = 0

    def on_epoch_end(self) -> None:
        if (self._handed_out or 0) >= min(2, len(self)):
            self.epoch += 1
        self._handed_out = None


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
        images: `(N, height, width, channels)`; uint8 0..255 is the cheapest.
        labels: Integers `(N,)`.
        batch_size: Images a batch.
        shuffle: Whether to permute the images, anew each epoch.
        augment: An `Augmentation`, or `None`.
        seed: Non-negative integer from which everything random follows.
        drop_remainder: Whether to leave out a last batch that is not full.
        backend: `"tf"` for a `tf.data.Dataset` (needs TensorFlow), `"pydataset"` for a
            `Batches`; `"auto"` is `"tf"` on Keras's TensorFlow backend.
        num_classes: Number of classes, needed with mixup only, whose labels are one-hot.
        initial_epoch: Number of the first epoch: where a resumed training goes on.
        divisible_by: A number that divides `batch_size`. Of a last batch that is not full so many
            images are left out that it divides that too: for batches that several devices share.
        part: `(i, n)`: hand out part `i` of the `n` equal parts of each batch, the same images as
            in the whole batch: for process `i` of `n` that train together.

    Returns:
        A `tf.data.Dataset` or a `Batches` that yields `(images, labels)`: images of the dtype
        given and labels int64 `(batch,)`, or with mixup float32 images and float32 labels
        `(batch, num_classes)`. One pass is one epoch. The dataset of `tf.data` reads its epoch
        when a pass starts and moves it on with the last batch of the pass.

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
        backend = "tf" if keras.backend.backend() == "tensorflow" else "pydataset"
    return _tf_dataset(source) if backend == "tf" else source


def _tf_dataset(source: Batches) -> Any:
    import tensorflow as tf

    def one_epoch():
        epoch = source.epoch
        for index in range(len(source)):
            batch = source.batch(epoch, index)
            if index == len(source) - 1:
                source.epoch = epoch + 1
            yield batch

    count = source.batch_size // source.part[1]
    if source.images_per_epoch % source.batch_size:
        count = None
    shape = source.images.shape[1:]
    if source.mixes:
        dtypes, label_shape = ("float32", "float32"), (count, source.num_classes)
    else:
        dtypes, label_shape = (source.images.dtype, "int64"), (count,)
    signature = (
        tf.TensorSpec((count, *shape), dtypes[0]),
        tf.TensorSpec(label_shape, dtypes[1]),
    )
    dataset = tf.data.Dataset.from_generator(one_epoch, output_signature=signature)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(len(source)))
    # Two batches ahead at most, and none if that could be the whole epoch: a look at the first
    # batch must not end the epoch behind its back.
    if len(source) > 4:
        return dataset.prefetch(2)
    options = tf.data.Options()
    options.experimental_optimization.inject_prefetch = False
    return dataset.with_options(options)
