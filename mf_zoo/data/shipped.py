"""A small sample of real images that comes with the package."""

import hashlib
import io
import pathlib

import numpy as np

from mf_zoo.data import datasets


def sample(name: str = "cifar10") -> tuple[np.ndarray, np.ndarray]:
    """Real test images that come with the package: no download, no data folder.

    It is the first 200 / `classes` test images of each class, in the order of the test set: 20 of
    each class of CIFAR-10, two of each class of CIFAR-100.

    Args:
        name: Name of a dataset with a sample: `"cifar10"` or `"cifar100"`.

    Returns:
        `(images, labels)`: uint8 `(200, 32, 32, 3)` and int64 `(200,)`.

    Raises:
        ValueError: If there is no sample of that name, or its file is damaged.

    Example:

    >>> images, labels = mf_zoo.data.sample("cifar10")
    >>> images.shape
    (200, 32, 32, 3)
    """
    expected = datasets.get(name).sample_sha256 if name in datasets.names() else None
    if expected is None:
        known = [name for name in datasets.names() if datasets.get(name).sample_sha256]
        raise ValueError(
            f"`name` must be a dataset with a sample, one of {', '.join(known)}. "
            f"Received: name={name!r}"
        )
    path = pathlib.Path(__file__).parent / "samples" / f"{name}.npz"
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise ValueError(
            f"{path} must have the sha256 {expected}; install the package again. "
            f"Received: a file with the sha256 {digest}"
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]
