"""Errors on corrupted images."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence

import keras

from mf_zoo.data.corruptions import CORRUPTIONS, SEVERITIES, load_corrupted
from mf_zoo.training.evaluation import evaluate


@dataclasses.dataclass(frozen=True)
class Robustness:
    """What `evaluate_corruptions` measured.

    Attributes:
        images: Number of images of each corruption and severity.
        errors: Top-1 error in percent, by corruption and then by severity.
    """

    images: int
    errors: Mapping[str, Mapping[int, float]]

    @property
    def means(self) -> dict[str, float]:
        """The error of each corruption, averaged over severities, in percent."""
        return {name: sum(row.values()) / len(row) for name, row in self.errors.items()}

    @property
    def mean_error(self) -> float:
        """The mean corruption error: `means` averaged over the corruptions, in percent.

        It is not divided by the errors of another network, as is usual on CIFAR; on ImageNet it is
        (by those of AlexNet).
        """
        return sum(self.means.values()) / len(self.errors)


def evaluate_corruptions(
    model: keras.Model,
    dataset: str,
    data_dir: str | os.PathLike | None = None,
    corruptions: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    limit: int | None = None,
    batch_size: int = 500,
    progress: Callable[[str], None] | None = None,
) -> Robustness:
    """Measures a classifier on the corrupted test images of a dataset.

    Args:
        model: Maps images, 0..255, to scores, float `(N, classes)`: probabilities or logits.
        dataset: Name of the dataset, such as `"cifar10"` (CIFAR-10-C).
        data_dir: Where `mf_zoo.data.load_corrupted` finds the images.
        corruptions: Names of corruptions; the default are the 15 of the benchmark.
        severities: Severities, each of 1 to 5.
        limit: Use the first so many images of each.
        batch_size: Images per forward pass; changes memory and speed only.
        progress: Called with the name of each corruption before it is measured.

    Returns:
        A `Robustness`.

    Raises:
        ValueError: For no corruption or severity, or one that there is not.
        DatasetUnavailableError, DatasetCorruptError: See `mf_zoo.data.load_corrupted`.

    Example:

    ```python
    model = mf_zoo.applications.MFResNet20(weights="cifar10")
    scores = mf_zoo.training.evaluate_corruptions(model, "cifar10", data_dir="data")
    print(scores.mean_error, scores.means["fog"])
    ```

    Source: Hendrycks and Dietterich, *Benchmarking Neural Network Robustness to Common Corruptions
    and Perturbations*, ICLR 2019, arXiv 1903.12261, section 4.
    """
    corruptions, severities = list(corruptions), list(severities)
    if not corruptions or not severities:
        raise ValueError(
            "There must be one corruption and one severity at least. "
            f"Received: corruptions={corruptions}, severities={severities}"
        )
    errors: dict[str, dict[int, float]] = {}
    count = 0
    for corruption in corruptions:
        if progress is not None:
            progress(corruption)
        errors[corruption] = {}
        for severity in severities:
            images, labels = load_corrupted(dataset, corruption, severity, data_dir)
            scores = evaluate(model, images[:limit], labels[:limit], batch_size, from_logits=True)
            errors[corruption][severity] = scores.error
            count = scores.images
    return Robustness(count, errors)
