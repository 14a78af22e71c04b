"""Make the samples that come with the package from the full data (maintainers only).

    python -m mf_zoo.data.make_sample DATA_DIR

Writes `samples/cifar10.npz` and `samples/cifar100.npz` beside this file and prints the sha256 that
`sample.py` holds of each.
"""

import argparse
import hashlib
import io
import os
import pathlib

import numpy as np

from mf_zoo.data.cifar import load

PER_CLASS = {"cifar10": 20, "cifar100": 2}


def choose(images: np.ndarray, labels: np.ndarray, per_class: int):
    """The first `per_class` images of each class and their labels, in the given order."""
    first = [np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]
    order = np.sort(np.concatenate(first))
    return images[order], labels[order]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Make the samples that come with the package.")
    parser.add_argument("data_dir", help="folder with the .npz files or prepared tfds data")
    args = parser.parse_args(arguments)
    for name, per_class in PER_CLASS.items():
        test = load(name, "test", data_dir=args.data_dir, download=False)
        images, labels = choose(*test, per_class)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, images=images, labels=labels)
        path = pathlib.Path(__file__).parent / "samples" / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        beside = path.with_suffix(".tmp")
        beside.write_bytes(buffer.getvalue())
        os.replace(beside, path)
        print(name, hashlib.sha256(buffer.getvalue()).hexdigest())


if __name__ == "__main__":
    main()
