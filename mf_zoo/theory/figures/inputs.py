"""What the pictures of the theory are made from: images and trained networks."""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mf_zoo.errors import UserError, user_errors

if TYPE_CHECKING:
    import keras
    import numpy as np

DATASET = "cifar10"
NETWORKS = ("MFResNet20=MFResNet20:cifar10", "ResNet20=ResNet20:cifar10")
IMAGES = 1000  # of each split, from a data folder


@dataclasses.dataclass(eq=False)
class Inputs:
    """What a picture may be made from.

    Args:
        images: Test images of CIFAR-10, uint8 `(n, 32, 32, 3)`, 0..255.
        labels: Their classes, int64 `(n,)`.
        train_images: Images to train on and to take statistics of; without a data folder they are
            the test images.
        train_labels: Their classes.
        networks: Networks by label, with softmax outputs of 10 classes. Each is loaded when it is
            first asked for, and all pictures share it.
        about: What all this is, as JSON can hold it.
    """

    images: "np.ndarray"
    labels: "np.ndarray"
    train_images: "np.ndarray"
    train_labels: "np.ndarray"
    networks: "Mapping[str, keras.Model]"
    about: dict[str, Any] = dataclasses.field(default_factory=dict)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that `load` takes."""
    parser.add_argument(
        "--data-dir",
        type=Path,
        metavar="D",
        help="folder of CIFAR-10, an .npz or tensorflow-datasets (default: the 200 test images "
        "that come with the package)",
    )
    for name, of in (("--images", "test"), ("--train-images", "training")):
        parser.add_argument(
            name,
            type=int,
            metavar="N",
            help=f"take the first N {of} images of `--data-dir` (default: {IMAGES})",
        )
    parser.add_argument(
        "--network",
        action="append",
        metavar="LABEL=NETWORK:FILE",
        help="a network to measure, in place of MFResNet20 and ResNet20; may be repeated. NETWORK "
        "is a name of `mf-zoo list`; FILE a registered name such as cifar10, a .weights.h5 file "
        "or the folder of a finished run. LABEL= may be left out",
    )


def load(
    data_dir: Path | None = None,
    images: int | None = None,
    train_images: int | None = None,
    network: Sequence[str] | None = None,
) -> Inputs:
    """Loads images and finds networks.

    Args:
        data_dir: A folder that `mf_zoo.data.load` reads CIFAR-10 from; `None` for the embedded
            sample.
        images: Number of test images, the first ones; `None` for 1,000. Needs a `data_dir`.
        train_images: Number of training images, likewise.
        network: The networks, each as `LABEL=NETWORK:FILE`; `None` for the shipped `MFResNet20` and
            `ResNet20` of CIFAR-10.

    Returns:
        The `Inputs`.

    Raises:
        UserError: For images that are not there, or networks that cannot be.

    Example:

    >>> from mf_zoo.theory.figures import inputs
    >>> found = inputs.load(network=["MFResNet20:cifar10"])
    >>> found.images.shape, list(found.networks)
    ((200, 32, 32, 3), ['MFResNet20'])
    """
    from mf_zoo import data

    # This is the inside of a command, which may know the rooms above the theory's.
    from mf_zoo.cli.common import weights_digest

    networks = Networks(NETWORKS if network is None else network)
    counts = {"images": images, "train_images": train_images}
    for name, count in counts.items():
        if count is not None and (count < 1 or data_dir is None):
            raise UserError(
                f"`{name}` must be 1 or more, of the images of a `data_dir`. Received: "
                f"{name}={count} and data_dir={data_dir}"
            )
    if data_dir is None:
        test = train = data.sample(DATASET)
        source = f"the sample of {DATASET} in the package: {len(test[0])} test images"
    else:
        counts = {name: count or IMAGES for name, count in counts.items()}
        with user_errors():
            test, train = (
                data.load(DATASET, f"{split}[:{count}]", data_dir=data_dir, download=False)
                for split, count in zip(("test", "train"), counts.values(), strict=True)
            )
        source = f"{DATASET}: the first {len(test[0])} test and {len(train[0])} training images"
    about = {
        "data": source,
        "images": len(test[0]),
        "train_images": len(train[0]),
        "networks": dict(networks.sources),
        "sha256": {
            label: weights_digest(*source.split(":", 1))
            for label, source in networks.sources.items()
        },
    }
    return Inputs(*test, *train, networks, about)


class Networks(Mapping):
    """Networks by label, each loaded when it is first asked for.

    Args:
        given: The networks, each as `LABEL=NETWORK:FILE`, or `NETWORK:FILE` with the name of the
            network as label.

    Raises:
        UserError: For another form, a label given twice, or what names no network or weights.
    """

    def __init__(self, given: Sequence[str]):
        self.sources: dict[str, str] = {}
        self._loaded: dict[str, Any] = {}
        for text in given:
            label, equals, source = text.partition("=")
            if not equals or ":" in label:  # there may be an equals sign in the name of the file
                label, source = text.partition(":")[0], text
            name, _, weights = source.partition(":")
            if not (label and name and weights) or label in self.sources:
                raise UserError(
                    "`network` must be LABEL=NETWORK:FILE, each with a label of its own. "
                    f"Received: {text!r}"
                )
            _check(name, weights)
            self.sources[label] = source

    def __getitem__(self, label: str) -> "keras.Model":
        if label not in self._loaded:
            name, _, weights = self.sources[label].partition(":")
            # This is the inside of a command, which may know the rooms above the theory's.
            from mf_zoo.cli.common import load_trained

            model, dataset = load_trained(name, weights, None, "softmax")
            if dataset != DATASET:
                raise UserError(
                    f"`network` must be one that was trained on {DATASET}. Received: "
                    f"{self.sources[label]!r}, trained on {dataset}"
                )
            self._loaded[label] = model
        return self._loaded[label]

    def __iter__(self) -> Iterator[str]:
        return iter(self.sources)

    def __len__(self) -> int:
        return len(self.sources)


def _check(name: str, weights: str) -> None:
    """Checks, before any work, that there is such a network and that there are such weights."""
    from mf_zoo import applications
    from mf_zoo import weights as registry

    with user_errors():
        applications.network(name)
        if not Path(weights).exists():
            record = registry.get(name, weights)
            if record.dataset != DATASET:
                raise UserError(
                    f"`network` must be one that was trained on {DATASET}. Received: "
                    f"{name}:{weights}, trained on {record.dataset}"
                )
