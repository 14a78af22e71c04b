"""What a network is told of its images: their shape, number of classes, mean and deviation."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import keras

    from mf_zoo.applications.architectures import Architecture
    from mf_zoo.weights import WeightRecord

# Sides of images: the networks halve them up to five times.
_LEAST_SIDE = 8


class Inputs(NamedTuple):
    """What a network is built for.

    Args:
        shape: `(rows, cols, channels)` of images, or channels first; rows and cols may be `None`.
        normalization: Mean and standard deviation of each channel, in units of 0..255.
        classes: Number of classes.
    """

    shape: tuple[int | None, ...]
    normalization: tuple[tuple[float, ...], tuple[float, ...]]
    classes: int


def cifar10_normalization() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of CIFAR-10: what networks have that are told nothing else."""
    from mf_zoo import data

    record = data.get("cifar10")
    return record.mean, record.std


def normalization_of(model: "keras.Model") -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and standard deviation by which a network normalises its images.

    Args:
        model: A network of the zoo.

    Returns:
        `(mean, std)`, a number for each channel, in units of 0..255; `None` for a model without a
        Normalization layer of constants.

    Example:

    >>> mf_zoo.applications.normalization_of(mf_zoo.applications.ResNet20())
    ((125.307, 122.95, 113.865), (62.993, 62.089, 66.705))
    """
    import keras

    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is not None:
            mean, variance = layer.input_mean, layer.input_variance
            # The square root of a square may differ in the last digit.
            return tuple(map(float, mean)), tuple(round(math.sqrt(v), 6) for v in variance)
    return None


def resolve(
    architecture: "Architecture",
    record: "WeightRecord | None" = None,
    *,
    input_shape: tuple[int | None, ...] | None = None,
    classes: int | None = None,
    dataset: str | None = None,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
    channels_first: bool = False,
) -> Inputs:
    """What a network is built for.

    Args:
        architecture: The network.
        record: That of registered weights, if it is built with some.
        input_shape, classes, dataset, normalization: Arguments of the builder.
        channels_first: Whether channels come first in `input_shape`.

    Returns:
        The `Inputs`.

    Raises:
        ValueError: For arguments that are out of range or do not fit each other.
    """
    from mf_zoo import data

    known = None if dataset is None else data.get(dataset)
    if classes is None:
        classes = known.classes if known else record.classes if record else 10
    if isinstance(classes, bool) or not (isinstance(classes, int) and classes > 0):
        raise ValueError(f"`classes` must be a positive integer. Received: classes={classes!r}")

    if normalization is not None:
        mean, std = _check_normalization(normalization)
    elif record is not None:
        mean, std = record.normalization or cifar10_normalization()
    elif known is not None:
        mean, std = known.mean, known.std
    else:
        mean, std = cifar10_normalization()

    if input_shape is None:
        if known is None and record is not None and record.dataset in data.names():
            known = data.get(record.dataset)
        rows, cols = (known or architecture).image_shape[:2]
        channels = known.image_shape[-1] if known else len(mean)
        if channels != len(mean):
            raise ValueError(
                f"The images of {known.name!r} have {channels} channels, and mean and standard "
                "deviation must be as many numbers: pass weights of such images, or "
                f"`normalization`. Received: mean={mean}"
            )
        input_shape = (channels, rows, cols) if channels_first else (rows, cols, channels)
    shape = check_shape(input_shape, len(mean), channels_first)
    return Inputs(shape, (mean, std), classes)


def check_shape(
    input_shape: tuple[int | None, ...], channels: int, channels_first: bool = False
) -> tuple[int | None, ...]:
    """Checks the shape of images.

    Args:
        input_shape: The shape, without the batch.
        channels: Number of channels that it must have.
        channels_first: Whether they come first.

    Returns:
        The shape as a tuple.

    Raises:
        ValueError: For another shape.
    """
    input_shape = tuple(input_shape)
    received = input_shape[0 if channels_first else -1] if len(input_shape) == 3 else None
    sides = input_shape[1:] if channels_first else input_shape[:-1]
    if received != channels or any(side is not None and side < _LEAST_SIDE for side in sides):
        number = str(channels)
        expected = f"({number}, rows, cols)" if channels_first else f"(rows, cols, {number})"
        raise ValueError(
            f"`input_shape` must be {expected} with rows and cols None or at least {_LEAST_SIDE}; "
            "for images of other channels pass `dataset` or `normalization` too. "
            f"Received: input_shape={input_shape}"
        )
    return input_shape


def _check_normalization(normalization: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        mean, std = (tuple(float(value) for value in part) for part in normalization)
    except (TypeError, ValueError):
        mean, std = (), ()
    if (
        not mean
        or len(mean) != len(std)
        or not all(map(math.isfinite, (*mean, *std)))
        or min(std) <= 0
    ):
        raise ValueError(
            "`normalization` must be (mean, std): as many numbers each as images have channels, in "
            "units of 0..255, standard deviations above 0. "
            f"Received: normalization={normalization!r}"
        )
    return mean, std
