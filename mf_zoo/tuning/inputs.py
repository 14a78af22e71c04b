"""The data of a trial: what `keras.Model.fit` takes, made ready for the recipe."""

import math
import types
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from mf_zoo import data


class TrialBatches(data.Batches):
    """`mf_zoo.data.Batches` that carry sample weights, with epochs of any length.

    A weight stays with its image. Where mixup or CutMix mixes two images, the loss of the mixture
    is `share * w1 * loss(label1) + (1 - share) * w2 * loss(label2)`: weights are mixed along with
    the images, and the mixed label holds each label by its weight.

    Args:
        images: As in `mf_zoo.data.batches`.
        labels: As in `mf_zoo.data.batches`.
        batch_size: Images a batch.
        sample_weight: A weight for each image, `(N,)`; `None` for batches without weights.
        steps_per_epoch: Number of batches in an epoch; the next epoch begins with the batch after
            them. `None` is one pass over the images.
        **settings: Other arguments of `mf_zoo.data.Batches`.

    Raises:
        ValueError: If an argument is not as described.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        batch_size: int,
        *,
        sample_weight: np.ndarray | None = None,
        steps_per_epoch: int | None = None,
        **settings: Any,
    ):
        if steps_per_epoch is not None and (
            type(steps_per_epoch) is not int or steps_per_epoch < 1
        ):
            raise ValueError(
                f"`steps_per_epoch` must be a whole number from 1. Received: {steps_per_epoch!r}"
            )
        self.steps_per_epoch = steps_per_epoch
        super().__init__(images, labels, batch_size, **settings)
        if sample_weight is not None and sample_weight.shape != self.labels.shape:
            raise ValueError(
                f"`sample_weight` must be a number for each of the {len(self.labels)} images. "
                f"Received: an array of shape {sample_weight.shape}"
            )
        self.sample_weight = sample_weight

    def __len__(self) -> int:
        return self.steps_per_epoch or super().__len__()

    def signature(self) -> tuple[Any, ...]:
        import tensorflow as tf

        # An epoch may end anywhere, so that any batch may be the one that is not full.
        return tuple(
            tf.TensorSpec((None, *part.shape[1:]), part.dtype) for part in self.batch(self.epoch, 0)
        )

    def batch(self, epoch: int, index: int) -> tuple[np.ndarray, ...]:
        if self.steps_per_epoch is not None:
            epoch, index = divmod(epoch * self.steps_per_epoch + index, super().__len__())
        if self.sample_weight is None:
            return super().batch(epoch, index)
        draw = self.draw(epoch, index)
        chosen = draw["index"]
        images, labels, weights = (
            values[chosen] for values in (self.images, self.labels, self.sample_weight)
        )
        if not self.mixes:
            return *self.augmented(images, labels, draw), weights
        weighted = np.eye(self.num_classes, dtype="float32")[labels] * weights[:, None]
        images = self.augment.transform_images(images, draw)
        images, weighted = self.augment.mix(images, weighted, draw)
        weights = weighted.sum(axis=1)
        return images, weighted / np.where(weights == 0, 1, weights)[:, None], weights


def is_dataset(x: Any) -> bool:
    """Whether `x` hands out batches, unlike an array, a tensor or a list."""
    return not hasattr(x, "shape") and not isinstance(x, (list, tuple))


def array(values: Any) -> np.ndarray:
    """An array of NumPy's from what Keras takes for an array."""
    return values if isinstance(values, np.ndarray) else keras.ops.convert_to_numpy(values)


def integer_labels(y: Any) -> np.ndarray:
    """The classes of images as integers `(N,)`, from those, a column of them, or one-hot labels.

    Raises:
        ValueError: For labels of another kind.
    """
    labels = array(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    elif labels.ndim == 2 and np.isin(labels, (0, 1)).all() and (labels.sum(axis=1) == 1).all():
        labels = labels.argmax(axis=1)
    if labels.ndim != 1 or not np.array_equal(labels, labels.astype("int64")):
        raise ValueError(
            "Labels must be integers, (N,) or (N, 1), or one-hot (N, classes). "
            f"Received: {labels.dtype} {labels.shape}"
        )
    return labels.astype("int64")


def image_weights(
    labels: np.ndarray, sample_weight: Any, class_weight: Mapping[int, float] | None
) -> np.ndarray | None:
    """The weight of each image, from its own or from that of its class.

    As in `keras.Model.fit`, a class that `class_weight` does not name weighs 1, and there is one
    of the two, not both.

    Raises:
        ValueError: For both.
    """
    if class_weight is not None:
        if sample_weight is not None:
            raise ValueError(
                "Images are weighted by `sample_weight` or by `class_weight`, not by both. "
                f"Received: both, class_weight={class_weight!r}"
            )
        return np.array([class_weight.get(label, 1.0) for label in labels.tolist()], "float32")
    if sample_weight is None:
        return None
    weights = array(sample_weight).astype("float32")
    return weights[:, 0] if weights.ndim == 2 and weights.shape[1] == 1 else weights


def split(share: float, *arrays: Any) -> tuple[list, list]:
    """Splits off the last images, as `validation_split` of `keras.Model.fit` does.

    Args:
        share: How many, as a fraction of all.
        *arrays: Arrays of equal length; `None` stays `None`.

    Returns:
        The first part of each array, and the last.

    Raises:
        ValueError: If a part would be empty.
    """
    count = len(arrays[0])
    first = math.floor(count * (1 - share)) if 0 < share < 1 else 0
    if not 0 < first < count:
        raise ValueError(
            "`validation_split` must be a fraction that leaves images on both sides. "
            f"Received: {share!r} of {count} images"
        )
    return (
        [None if values is None else values[:first] for values in arrays],
        [None if values is None else values[first:] for values in arrays],
    )


def length(dataset: Any) -> int | None:
    """Number of batches of a dataset; `None` if it does not say, or has no end."""
    try:
        if isinstance(dataset, keras.utils.PyDataset):
            return dataset.num_batches
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def look(dataset: Any) -> tuple[bool, Any]:
    """Looks at the first batch of a dataset, unless the dataset says what it holds.

    Args:
        dataset: The dataset.

    Returns:
        Whether its labels are one-hot or soft, not integers; and the dataset, with all its batches
        if it is a generator.
    """
    if hasattr(dataset, "element_spec"):  # tf.data
        batch = dataset.element_spec
    elif isinstance(dataset, data.EpochDataset):
        batch = dataset.batch(dataset.epoch, 0)
    elif isinstance(dataset, keras.utils.PyDataset):
        batch = dataset[0]
    elif isinstance(dataset, types.GeneratorType):
        batch, rest = next(dataset), dataset
        # Keras takes generators, and no other iterators.
        dataset = (one for part in ((batch,), rest) for one in part)
    else:
        batch = next(iter(dataset))
    labels = keras.utils.unpack_x_y_sample_weight(batch)[1]
    return labels is not None and len(labels.shape) == 2 and labels.shape[1] != 1, dataset
