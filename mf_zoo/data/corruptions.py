"""Corrupted test images: CIFAR-10-C, CIFAR-100-C and sets laid out as they are."""

import dataclasses
import os
from pathlib import Path

import numpy as np

from mf_zoo.data import datasets
from mf_zoo.data.arrays import load_npy
from mf_zoo.data.errors import DatasetCorruptError, DatasetUnavailableError
from mf_zoo.data.loading import Chunk, check_chunk, check_layout, load

SEVERITIES = (1, 2, 3, 4, 5)

# The 15 corruptions over which errors are averaged, in the order of the paper, and the 4 that it
# keeps for validation.
CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")

# Those that tensorflow-datasets calls by another name.
_TFDS_NAMES = {"glass_blur": "frosted_glass_blur", "elastic_transform": "elastic"}


def load_corrupted(
    name: str,
    corruption: str,
    severity: int,
    data_dir: str | os.PathLike | None = None,
    download: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Load the test images of a dataset, all corrupted in one way.

    The images are read from the authors' files where `data_dir` holds them: the folder
    `CIFAR-10-C` or `CIFAR-100-C`, with an array for each corruption and `labels.npy`. Those of
    CIFAR-10 are else read as tensorflow-datasets has prepared them (`cifar10_corrupted`), in
    another order.

    Args:
        name: Name of the dataset, such as `"cifar10"`.
        corruption: One of `mf_zoo.data.CORRUPTIONS` or `mf_zoo.data.EXTRA_CORRUPTIONS`.
        severity: 1 (mild) to 5.
        data_dir: The folder in which the folder of the arrays lies, or a folder of
            tensorflow-datasets; `None` is the default folder of tensorflow-datasets.
        download: Whether tensorflow-datasets may download what is not prepared in `data_dir`.

    Returns:
        `(images, labels)`: uint8 `(N, height, width, channels)` and int64 `(N,)`.

    Raises:
        ValueError: For a dataset, corruption or severity that there is not.
        DatasetUnavailableError: If the data is not there and cannot be downloaded.
        DatasetCorruptError: If the data is there but damaged.

    Example:

    ```python
    images, labels = mf_zoo.data.load_corrupted("cifar10", "fog", 3, data_dir="data")
    ```

    Source: Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions
    and Perturbations*, ICLR 2019, arXiv 1903.12261.
    """
    dataset = datasets.get(name)
    known = (*CORRUPTIONS, *EXTRA_CORRUPTIONS)
    if corruption not in known:
        raise ValueError(
            f"`corruption` must be one of {', '.join(known)}. Received: corruption={corruption!r}"
        )
    if severity not in SEVERITIES:
        raise ValueError(f"`severity` must be one of 1 to 5. Received: severity={severity!r}")
    folder = f"{dataset.title}-C"
    if data_dir is not None:
        path = Path(data_dir).expanduser() / folder
        if path.is_dir():
            return _read_arrays(dataset, path, corruption, severity)
    if dataset.corrupted is None:
        raise DatasetUnavailableError(
            f"Corrupted images of {name} are read from the authors' files: `data_dir` must hold "
            f"their folder {folder}, with {corruption}.npy and labels.npy. "
            f"Received: data_dir={None if data_dir is None else str(data_dir)!r}"
        )
    config = f"{_TFDS_NAMES.get(corruption, corruption)}_{severity}"
    record = dataclasses.replace(
        dataset,
        name=f"{dataset.corrupted}_{config}",
        tfds_name=f"{dataset.corrupted}/{config}",
        order_feature=None,
        server="https://zenodo.org/",
    )
    return load(record, "test", data_dir, download)


def _read_arrays(
    dataset: datasets.Dataset, folder: Path, corruption: str, severity: int
) -> tuple[np.ndarray, np.ndarray]:
    """The images of one severity: the arrays hold those of all five, one after the other."""
    path = folder / f"{corruption}.npy"
    origin = f"{path}, with labels.npy beside it,"
    try:
        # Mapped, so that one severity is read and not all five.
        images, labels = load_npy(
            folder,
            (corruption, "labels"),
            lambda headers: check_layout(dataset, origin, *headers),
        )
    except FileNotFoundError as error:
        raise DatasetUnavailableError(
            f"{folder} must hold {corruption}.npy and labels.npy. Received: {error}"
        ) from error
    check_chunk(dataset, Chunk(origin, images, labels))
    count = len(SEVERITIES)
    if not len(images) or len(images) % count:
        raise DatasetCorruptError(
            f"{path} must hold as many images of each of {count} severities. "
            f"Received: {len(images)} images"
        )
    each = len(images) // count
    window = slice((severity - 1) * each, severity * each)
    return np.array(images[window]), labels[window].astype("int64")
