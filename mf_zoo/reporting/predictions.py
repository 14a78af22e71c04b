"""What a network says of the images that it is evaluated on."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mf_zoo.training import Evaluation


@dataclasses.dataclass(frozen=True, eq=False)
class Predictions:
    """A network's answers to labelled images.

    Attributes:
        evaluation: What was measured, with the probabilities.
        images: uint8 `(N, rows, cols, channels)`.
        labels: The right classes, int64 `(N,)`.
        class_names: Names of the classes.
        evaluated_on: What the images are, such as "the test images".
    """

    evaluation: "Evaluation"
    images: np.ndarray
    labels: np.ndarray
    class_names: Sequence[str]
    evaluated_on: str

    @property
    def classes(self) -> np.ndarray:
        """The most probable class of each image, int64 `(N,)`."""
        return self.evaluation.log_probabilities.argmax(axis=1)

    @property
    def correct(self) -> np.ndarray:
        """Whether it is the right one, bool `(N,)`."""
        return self.classes == self.labels

    @property
    def confidence(self) -> np.ndarray:
        """Its probability, float64 `(N,)`."""
        return np.exp(self.evaluation.log_probabilities.max(axis=1))

    def confusion(self) -> np.ndarray:
        """Number of images by right class (row) and most probable class (column), int64."""
        n = len(self.class_names)
        return np.bincount(self.labels * n + self.classes, minlength=n * n).reshape(n, n)

    def worst(self, count: int) -> list[int]:
        """The wrongly classified images of the highest probability for the wrong class, in order.

        Args:
            count: How many at most.

        Returns:
            Their indices.
        """
        wrong = np.flatnonzero(~self.correct)
        order = np.argsort(-self.confidence[wrong], kind="stable")
        return wrong[order[:count]].tolist()
