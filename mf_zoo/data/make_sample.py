"""Make the samples that come with the package from the full data (maintainers only).

    python -m mf_zoo.data.make_sample DATA_DIR [NAME ...]

Writes `samples/NAME.npz` beside this file and prints its sha256, which the dataset's record must
hold as `sample_sha256`.
"""

import argparse
import functools
import pathlib

import numpy as np

from mf_zoo.data import datasets
from mf_zoo.data.loading import load
from mf_zoo.files import write_atomically

IMAGES = 200


def choose(images: np.ndarray, labels: np.ndarray, per_class: int):
    """The first `per_class` images of each class and their labels, in the given order."""
    first = [np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]
    order = np.sort(np.concatenate(first))
    return images[order], labels[order]


def main(arguments: list[str] | None = None) -> None:
    known = [name for name in datasets.names() if datasets.get(name).sample_sha256]
    parser = argparse.ArgumentParser(description="Make the samples that come with the package.")
    parser.add_argument("data_dir", help="folder with the .npz files or prepared tfds data")
    parser.add_argument("names", nargs="*", default=known, help=f"default: {' '.join(known)}")
    args = parser.parse_args(arguments)
    for name in args.names:
        test = load(name, "test", data_dir=args.data_dir, download=False)
        images, labels = choose(*test, max(IMAGES // datasets.get(name).classes, 1))
        path = pathlib.Path(__file__).parent / "samples" / f"{name}.npz"
        path.parent.mkdir(exist_ok=True)
        write = functools.partial(np.savez_compressed, images=images, labels=labels)
        print(name, write_atomically(path, write))


if __name__ == "__main__":
    main()
