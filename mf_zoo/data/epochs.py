"""Batches numbered by epoch and place, for `model.fit`."""

from typing import Any

import keras
import numpy as np

from mf_zoo.data.augmentation import Augmentation

_AUGMENTATION = 1  # a stream of random numbers of an epoch; 0 is that of permutations


class EpochDataset(keras.utils.PyDataset):
    """A dataset whose batches are functions of `(seed, epoch, batch index)` alone.

    So a training that is interrupted and resumes at epoch `k` with `initial_epoch=k` sees the
    very batches it would have seen. A subclass says in `batch` what they are.

    Within an epoch of `model.fit` the batches are handed out in order, whichever is asked for:
    `fit(shuffle=True)`, its default, would otherwise ask in an order drawn from Python's own
    generator, and no seed would repeat a run. `fit` also moves the epoch on. (Keras calls
    `on_epoch_end` once more before the first epoch, and may try one batch to build a model;
    neither counts, unless the dataset has only that batch.) There are no workers of Keras that
    could run ahead into the next epoch. To look at a batch in the meantime, call `batch`.

    Args:
        count: Number of images in an epoch.
        batch_size: Images a batch.
        shuffle: Whether the images are permuted anew each epoch.
        augment: An `Augmentation`, or `None`.
        seed: Non-negative integer from which everything random follows.
        drop_remainder: Whether to leave out a last batch that is not full.
        num_classes: Number of classes, needed with mixup and CutMix only, whose labels
            are one-hot.
        initial_epoch: Number of the first epoch.

    Attributes:
        epoch: Number of the epoch being handed out; may be set.

    Raises:
        ValueError: If an argument is not as described, or there is no batch.
    """

    numbers_images = False  # whether an image has one number in all epochs

    def __init__(
        self,
        count: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: Augmentation | None = None,
        seed: int = 0,
        drop_remainder: bool = False,
        num_classes: int | None = None,
        initial_epoch: int = 0,
    ):
        super().__init__(workers=1, use_multiprocessing=False)
        for label, value, low in (
            ("batch_size", batch_size, 1),
            ("seed", seed, 0),
            ("initial_epoch", initial_epoch, 0),
        ):
            if not isinstance(value, (int, np.integer)) or value < low:
                raise ValueError(f"`{label}` must be an integer >= {low}. Received: {value!r}")
        if augment is not None and not isinstance(augment, Augmentation):
            raise ValueError(
                f"`augment` must be an mf_zoo.data.Augmentation or None. Received: {augment!r}"
            )
        if augment is not None and augment.alternating_flip and not self.numbers_images:
            raise ValueError(
                "`alternating_flip` needs images that keep their number from epoch to epoch, as "
                f"those of `mf_zoo.data.batches` do. Received: {type(self).__name__}"
            )
        self.mixes = augment is not None and augment.mixes
        self.count = int(count)
        self.batch_size = int(batch_size)
        self.shuffle = bool(shuffle)
        self.augment = augment
        self.seed = int(seed)
        self.drop_remainder = bool(drop_remainder)
        self.num_classes = num_classes
        self.epoch = int(initial_epoch)
        self._handed_out: int | None = None  # batches of the epoch `fit` is in
        if not len(self):
            raise ValueError(
                f"There must be at least one batch. Received: {count} images, "
                f"batch_size={batch_size}, drop_remainder={drop_remainder}"
            )

    def __len__(self) -> int:
        full, rest = divmod(self.count, self.batch_size)
        return full + (rest > 0 and not self.drop_remainder)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} batches. Received: index={index}")
        if self._handed_out is not None:
            index = self._handed_out % len(self)
            self._handed_out += 1
        return self.batch(self.epoch, index)

    def batch(self, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch `index` of epoch `epoch`: `(images, labels)`, whatever was asked for before."""
        raise NotImplementedError(f"{type(self).__name__} must implement `batch`.")

    def generator(self, *stream: int) -> np.random.Generator:
        """A generator of random numbers of its own for each `stream` of numbers."""
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, *stream])))

    def draw_augmentation(
        self, epoch: int, index: int, batch_size: int, image_shape: tuple[int, ...]
    ) -> dict[str, np.ndarray]:
        """What `Augmentation.draw` returns for a batch of an epoch; empty without `augment`."""
        if self.augment is None:
            return {}
        return self.augment.draw(
            self.generator(epoch, _AUGMENTATION, index), batch_size, image_shape
        )

    def augmented(
        self, images: np.ndarray, labels: np.ndarray, draw: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """A batch changed as `draw` says; mixed labels become one-hot."""
        if self.augment is None:
            return images, labels
        images = self.augment.transform_images(images, draw)
        if self.mixes:
            one_hot = np.eye(self.num_classes, dtype="float32")[labels]
            images, labels = self.augment.mix(images, one_hot, draw)
        return images, labels

    def on_epoch_begin(self) -> None:
        self._handed_out = 0

    def on_epoch_end(self) -> None:
        if (self._handed_out or 0) >= min(2, len(self)):
            self.epoch += 1
        self._handed_out = None


def batch_spec(
    source: EpochDataset, image_shape: tuple[int, ...], dtype: Any, parts: int = 1
) -> tuple[Any, Any]:
    """`tf.TensorSpec` of the images and of the labels of a batch.

    Args:
        source: The dataset.
        image_shape: `(height, width, channels)`.
        dtype: That of the images before they are mixed.
        parts: Into how many parts a batch is divided, of which the dataset hands out one.
    """
    import tensorflow as tf

    count = source.batch_size // parts
    if source.count % source.batch_size and not source.drop_remainder:
        count = None
    dtypes, label_shape = (dtype, "int64"), (count,)
    if source.mixes:
        dtypes, label_shape = ("float32", "float32"), (count, source.num_classes)
    return (
        tf.TensorSpec((count, *image_shape), dtypes[0]),
        tf.TensorSpec(label_shape, dtypes[1]),
    )


def look_ahead(dataset: Any, batches: int) -> Any:
    """A `tf.data.Dataset` of so many batches that knows their number and prefetches some.

    Two batches at most, and none if that could be the whole epoch: a look at the first batch must
    not end the epoch behind its back. Autotuning is off: the end of a pass would wait for the
    thread that tunes, which sleeps for as long as the pass has taken
    (`python -m benchmarks.input_pipeline`).
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.inject_prefetch = False
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(batches))
    return (dataset.prefetch(2) if batches > 4 else dataset).with_options(options)


def for_predict(images: Any, batch_size: int) -> Any:
    """What to give `predict`: on TensorFlow a `tf.data.Dataset` of batches that is not tuned.

    Of an array Keras itself makes one that `tf.data` tunes, and its end is waited for (see
    `look_ahead`). Other inputs than arrays of uint8 or float32, which Keras may convert, are left
    to it.
    """
    if keras.backend.backend() != "tensorflow":
        return images
    if not isinstance(images, np.ndarray) or images.dtype not in ("uint8", "float32"):
        return images
    import tensorflow as tf

    starts = range(0, len(images), batch_size)
    dataset = tf.data.Dataset.from_generator(
        lambda: (images[start : start + batch_size] for start in starts),
        output_signature=tf.TensorSpec((None, *images.shape[1:]), images.dtype),
    )
    return look_ahead(dataset, len(starts))
