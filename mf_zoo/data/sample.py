"""A small sample of real images that comes with the package."""

import hashlib
import io
import pathlib

import numpy as np

_SAMPLES = {
    "cifar10": "8454cdf9a8095e9e06efd1c82bdeab5fb60f79c96969a0ce83cb89f70a49a9e3",
    "cifar100": "dd2d8195ecc3ed31d1e687194b1e6d6e8fce053cfa0fcc9e2b70cfc9a1ada8bc",
}  # name -> sha256 of samples/<name>.npz


def sample(name: str = "cifar10") -> tuple[np.ndarray, np.ndarray]:
    """Real test images that come with the package: no download, no data folder.

    Of CIFAR-10 it is the first 20 test images of each class, in the order of the test set; of
    CIFAR-100 two of each class.

    Args:
        name: `"cifar10"` or `"cifar100"`.

    Returns:
        `(images, labels)`: uint8 `(200, 32, 32, 3)` and int64 `(200,)`.

    Raises:
        ValueError: If there is no sample of that name, or its file is damaged.

    Example:

    >>> images, labels = mf_zoo.data.sample("cifar10")
    >>> images.shape
    (200, 32, 32, 3)
    """
    if name not in _SAMPLES:
        raise ValueError(
            f"`name` must be a dataset with a sample, one of {', '.join(_SAMPLES)}. "
            f"Received: name={name!r}"
        )
    path = pathlib.Path(__file__).parent / "samples" / f"{name}.npz"
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != _SAMPLES[name]:
        raise ValueError(
            f"{path} must have the sha256 {_SAMPLES[name]}; install the package again. "
            f"Received: a file with the sha256 {digest}"
        )
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        return arrays["images"], arrays["labels"]
