"""What a network is told of its images: their shape, number of classes, mean and deviation."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
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


class _Fallback(NamedTuple):
    name: str
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        from mf_zoo import data

        return tuple(data.class_names(self.name))

    @property
    def classes(self) -> int:
        return len(self.class_names)


# Of the training images, in units of 0..255.
_FALLBACK: Mapping[str, _Fallback] = {
    "cifar10": _Fallback(
        "cifar10", (32, 32, 3), (125.307, 122.950, 113.865), (62.993, 62.089, 66.705)
    ),
    "cifar100": _Fallback(
        "cifar100", (32, 32, 3), (129.304, 124.070, 112.434), (68.170, 65.392, 70.418)
    ),
}


def names() -> list[str]:
    """Names of the registered datasets, in their order."""
    from mf_zoo import data

    return list(data.names()) if "names" in dir(data) else list(_FALLBACK)


def dataset_record(name: str) -> Any:
    """The record of a dataset; raises ValueError for an unknown name."""
    from mf_zoo import data

    if "names" in dir(data):
        return data.get(name)
    data.class_names(name)  # raises for what it does not know
    return _FALLBACK[name]


def cifar10_normalization() -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of CIFAR-10: what networks have that are told nothing else."""
    record = dataset_record("cifar10")
    return tuple(record.mean), tuple(record.std)


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
    known = None if dataset is None else dataset_record(dataset)
    if classes is None:
        classes = known.classes if known else record.classes if record else 10
    if isinstance(classes, bool) or not (isinstance(classes, int) and classes > 0):
        raise ValueError(f"`classes` must be a positive integer. Received: classes={classes!r}")

    if normalization is not None:
        mean, std = _check_normalization(normalization)
    elif record is not None:
        mean, std = record.normalization or cifar10_normalization()
    elif known is not None:
        if known.mean is None or known.std is None:
            raise ValueError(
                "`normalization` must be given for a dataset that does not say its mean and "
                f"standard deviation. Received: dataset={dataset!r}, normalization=None"
            )
        mean, std = tuple(known.mean), tuple(known.std)
    else:
        mean, std = cifar10_normalization()

    if input_shape is None:
        if known is None and record is not None and record.dataset in names():
            known = dataset_record(record.dataset)
        sides = known.image_shape[:2] if known else architecture.image_shape[:2]
        sides = (
            ours if theirs is None else theirs
            for ours, theirs in zip(architecture.image_shape[:2], sides, strict=True)
        )
        channels = known.image_shape[-1] if known else len(mean)
        if channels != len(mean):
            raise ValueError(
                f"The images of {known.name!r} have {channels} channels, and mean and standard "
                "deviation must be as many numbers: pass weights of such images, or "
                f"`normalization`. Received: mean={mean}"
            )
        rows, cols = sides
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
