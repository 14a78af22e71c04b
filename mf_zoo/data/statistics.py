"""Mean and standard deviation of a dataset's training images, for its record.

python -m mf_zoo.data.statistics NAME --data-dir D [--import MODULE]
"""

import argparse
import importlib
import math
import os
import sys

import numpy as np

from mf_zoo.data import datasets
from mf_zoo.data.loading import read_chunks
from mf_zoo.errors import UserError, one_line, user_errors


def mean_and_std(
    name: str, data_dir: str | os.PathLike | None = None, download: bool = True
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Computes mean and standard deviation of the training images of a dataset.

    Both are over all pixels of all images, by channel, exact but for a last rounding. Images are
    read in chunks, of which one at a time is in memory (an `.npz` file is one chunk).

    Args:
        name: Name of the dataset.
        data_dir: Where its images lie, see `load`.
        download: Whether tensorflow-datasets may download them.

    Returns:
        `(mean, std)`, each a tuple with a number for each channel, in 0..255.

    Raises:
        ValueError: If no dataset of that name is registered.
        DatasetUnavailableError, DatasetCorruptError: See `load`.
    """
    dataset = datasets.get(name)
    # How often each of the 256 values occurs in each channel.
    counts = np.zeros((dataset.image_shape[2], 256), "int64")
    for chunk in read_chunks(dataset, "train", data_dir, download):
        for channel, total in enumerate(counts):
            total += np.bincount(chunk.images[..., channel].ravel(), minlength=256)
    mean, std = [], []
    for total in counts.tolist():
        pixels, first, second = (
            sum(count * value**power for value, count in enumerate(total)) for power in range(3)
        )
        mean.append(first / pixels)
        std.append(math.sqrt((pixels * second - first**2) / pixels**2))
    return tuple(mean), tuple(std)


def main(arguments: list[str] | None = None) -> int:
    """Prints the fields `mean` and `std` of a dataset's record."""
    parser = argparse.ArgumentParser(
        prog="python -m mf_zoo.data.statistics",
        description="Mean and standard deviation of a dataset's training images by channel, in "
        "0..255, as its record holds them.",
    )
    parser.add_argument("name", metavar="NAME", help="of a registered dataset")
    parser.add_argument("--data-dir", metavar="D", help="where `mf_zoo.data.load` finds its images")
    parser.add_argument(
        "--import",
        action="append",
        default=[],
        dest="modules",
        metavar="MODULE",
        help="a module that registers datasets; may be repeated",
    )
    options = parser.parse_args(arguments)
    try:
        with user_errors():
            for module in options.modules:
                importlib.import_module(module)
            found = mean_and_std(options.name, options.data_dir)
    except UserError as error:
        print(f"{parser.prog}: error: {one_line(error)}", file=sys.stderr)
        return 2
    for field, values in zip(("mean", "std"), found, strict=True):
        print(
            f"{field}=({', '.join(f'{value:.3f}' for value in values)}{',' * (len(values) == 1)})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
