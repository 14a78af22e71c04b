"""Make the sample that comes with the package from the full data (maintainers only).

    python -m mf_zoo.data.make_sample DATA_DIR

Writes `samples/cifar10.npz` beside this file and prints the sha256 that `sample.py` holds.
"""

import argparse
import hashlib
import io
import os
import pathlib

import numpy as np

from mf_zoo.data.cifar import load

PER_CLASS = 20


def choose(images: np.ndarray, labels: np.ndarray, per_class: int = PER_CLASS):
    """The first `per_class` images of each class and their labels, in the given order."""
    first = [np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]
    order = np.sort(np.concatenate(first))
    return images[order], labels[order]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the sample that comes with the package.")
    parser.add_argument("data_dir", help="folder with cifar10.npz or prepared tfds data")
    args = parser.parse_args(arguments)
    images, labels = choose(*load("cifar10", "test", data_dir=args.data_dir, download=False))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, labels=labels)
    path = pathlib.Path(__file__).parent / "samples" / "cifar10.npz"
    path.parent.mkdir(exist_ok=True)
    beside = path.with_suffix(".tmp")
    beside.write_bytes(buffer.getvalue())
    os.replace(beside, path)
    print(hashlib.sha256(buffer.getvalue()).hexdigest())


if __name__ == "__main__":
    main()
