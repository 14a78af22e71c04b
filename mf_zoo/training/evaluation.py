"""Evaluation of a classifier: accuracy, likelihood, calibration."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from mf_zoo.data.epochs import for_predict


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured. Rates are in percent, losses in nats.

    Attributes:
        images: Number of images.
        top1: Images whose most probable class is the right one, in percent.
        top5: Images whose right class is among the five most probable, in percent.
        error: `100 - top1`.
        top5_error: `100 - top5`.
        coarse_error: Images whose most probable class is of another superclass than the right
            one, in percent; `None` where classes have no superclasses.
        loss: Mean cross-entropy against the (smoothed) labels.
        nll: Mean negative log-likelihood of the right class; equals `loss` without smoothing.
        ece: Expected calibration error, in percent.
        log_probabilities: Logarithm of the predicted distributions, float64, (images, classes).
    """

    images: int
    top1: float
    top5: float
    error: float
    top5_error: float
    coarse_error: float | None
    loss: float
    nll: float
    ece: float
    log_probabilities: np.ndarray = dataclasses.field(repr=False, compare=False)

    def to_dict(self) -> dict[str, float | None]:
        """Returns the numbers, without the predictions, fit for JSON."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "log_probabilities"
        }

    def write_predictions(
        self, path: str | Path, labels: np.ndarray, class_names: Sequence[str] | None = None
    ):
        """Writes one CSV row per image: index, label, prediction, confidence, probabilities.

        Args:
            path: The CSV file.
            labels: The right classes, as given to `evaluate`.
            class_names: Names of the probability columns; the classes' numbers by default.
        """
        probabilities = np.exp(self.log_probabilities)
        predictions = probabilities.argmax(axis=1)
        names = class_names if class_names is not None else range(probabilities.shape[1])
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(
                ["index", "label", "prediction", "confidence", *(f"p_{name}" for name in names)]
            )
            for i, row in enumerate(probabilities):
                numbers = [f"{value:.9g}" for value in (row[predictions[i]], *row)]
                writer.writerow([i, int(labels[i]), int(predictions[i]), *numbers])


def evaluate(
    model: keras.Model,
    images: np.ndarray,
    labels: np.ndarray,
    batch_size: int = 500,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    superclasses: Sequence[str] | None = None,
    verbose: int = 0,
) -> Evaluation:
    """Measures a classifier on labelled images.

    The numbers are computed in float64 from the model's outputs. Calibration: the mean over
    images of `|accuracy - confidence|`, both averaged in each of 15 equal-width bins of the
    largest probability (Guo et al., 2017, arXiv 1706.04599, section 3).

    Args:
        model: Maps images to probabilities, or to logits; float (N, classes).
        images: The model's inputs, (N, ...).
        labels: The right classes, integers, (N,).
        batch_size: Images per forward pass; changes memory and speed only.
        from_logits: Whether the model ends in logits instead of a softmax.
        label_smoothing: Of the cross-entropy reported as `loss`.
        superclasses: The superclass of each class, see `mf_zoo.data.superclasses`.
        verbose: As in `keras.Model.predict`.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: If there are no images, or not one label for each, or a label is no class of
            the model, or there is not one superclass for each class, or the outputs are no
            probabilities and `from_logits` is not set.

    Example:

    >>> import keras, numpy as np
    >>> model = keras.Sequential([keras.layers.Input((3,)), keras.layers.Softmax()])
    >>> scores = evaluate(model, np.eye(3, dtype="float32"), np.array([0, 1, 1]))
    >>> round(scores.top1, 2), round(scores.nll, 4)
    (66.67, 0.8848)
    """
    labels = np.asarray(labels)
    if len(images) == 0 or labels.shape != (len(images),):
        raise ValueError(
            "Evaluation needs at least one image and one label for each. "
            f"Received: {len(images)} images, labels of shape {labels.shape}"
        )
    given = for_predict(images, batch_size)
    outputs = model.predict(
        given, batch_size=batch_size if given is images else None, verbose=verbose
    )
    return measure(outputs, labels, from_logits, label_smoothing, superclasses)


def measure(
    outputs: np.ndarray,
    labels: np.ndarray,
    from_logits: bool = False,
    label_smoothing: float = 0.0,
    superclasses: Sequence[str] | None = None,
) -> Evaluation:
    """Measures what a classifier said of labelled images; `evaluate` asks it and does the same.

    Args:
        outputs: Probabilities, or logits, float (N, classes). Logarithms of probabilities are
            logits.
        labels: The right classes, integers, (N,).
        from_logits, label_smoothing, superclasses: See `evaluate`.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: See `evaluate`.

    Example:

    >>> round(measure(np.array([[0.25, 0.75]]), np.array([1])).nll, 4)
    0.2877
    """
    outputs, labels = np.asarray(outputs, dtype="float64"), np.asarray(labels)
    classes = outputs.shape[-1]
    if outputs.ndim != 2 or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            "Labels must be classes of the model, whose output must have the shape "
            f"(images, classes). Received: output of shape {outputs.shape}, "
            f"labels from {labels.min()} to {labels.max()}"
        )
    if superclasses is not None and len(superclasses) != classes:
        raise ValueError(
            f"`superclasses` must have one entry for each of the {classes} classes. "
            f"Received: {len(superclasses)} entries"
        )
    if from_logits:
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    elif outputs.min() < 0 or outputs.max() > 1.01:  # half precision rounds
        raise ValueError(
            "The outputs must be probabilities unless `from_logits=True`. "
            f"Received: outputs from {outputs.min():.4g} to {outputs.max():.4g}"
        )
    else:
        # A float32 softmax may underflow to 0; its smallest normal number bounds the loss.
        logs = np.log(np.maximum(outputs, np.finfo("float32").tiny))
    rows = np.arange(len(labels))
    ranks = np.argsort(np.argsort(-logs, axis=1, kind="stable"), axis=1)[rows, labels]
    nll = float(-logs[rows, labels].mean())
    top1 = 100 * float(np.mean(ranks == 0))
    top5 = 100 * float(np.mean(ranks < 5))
    coarse_error = None
    if superclasses is not None:
        coarse = np.asarray(superclasses)
        coarse_error = 100 * float(np.mean(coarse[logs.argmax(axis=1)] != coarse[labels]))
    return Evaluation(
        images=len(labels),
        top1=top1,
        top5=top5,
        error=100 - top1,
        top5_error=100 - top5,
        coarse_error=coarse_error,
        loss=(1 - label_smoothing) * nll - label_smoothing * float(logs.mean()),
        nll=nll,
        ece=calibration_error(np.exp(logs.max(axis=1)), ranks == 0),
        log_probabilities=logs,
    )


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Returns the expected calibration error in percent, over equal-width bins `(a, b]`.

    Args:
        confidence: Largest probability of each image, (N,).
        correct: Whether that class is the right one, (N,).
        bins: Number of bins over [0, 1].

    Example:

    >>> round(calibration_error(np.array([0.9, 0.9]), np.array([True, False])), 6)
    40.0
    """
    bin_of = _bin_of(confidence, bins)
    gaps = np.bincount(bin_of, weights=correct - confidence, minlength=bins)
    return 100 * float(np.abs(gaps).sum() / len(confidence))


def calibration_bins(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns what a reliability diagram shows, of the bins of `calibration_error`.

    Args:
        confidence, correct, bins: As in `calibration_error`.

    Returns:
        For each bin the number of images, int64, their mean confidence and the part of them that is
        right, float64; both NaN in a bin without images.

    Example:

    >>> counts, confidence, right = calibration_bins(np.array([0.9, 0.9]), np.array([1, 0]), 2)
    >>> counts.tolist(), confidence.tolist(), right.tolist()
    ([0, 2], [nan, 0.9], [nan, 0.5])
    """
    bin_of = _bin_of(confidence, bins)
    counts = np.bincount(bin_of, minlength=bins)
    divisor = np.where(counts > 0, counts, np.nan)
    sums = (np.bincount(bin_of, weights=values, minlength=bins) for values in (confidence, correct))
    return counts, *(total / divisor for total in sums)


def _bin_of(confidence: np.ndarray, bins: int) -> np.ndarray:
    return np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
