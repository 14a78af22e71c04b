"""From scores to the names of classes."""

from typing import Any

import keras
import numpy as np

from mf_zoo.data import class_names

_DATASETS = {10: "cifar10", 100: "cifar100"}


def decode_predictions(
    preds: Any, top: int = 5, dataset: str | None = None
) -> list[list[tuple[int, str, float]]]:
    """The classes with the highest scores, by name, as in `keras.applications`.

    Args:
        preds: Scores `(batch, classes)`, as a model of the zoo predicts them: probabilities, or
            logits, which are given back as they are.
        top: Number of classes for each image.
        dataset: `"cifar10"` or `"cifar100"`; `None` for the one with as many classes.

    Returns:
        For each image a list of `top` tuples `(label, class name, score)`, highest score first
        and, of equal scores, lowest label first.

    Raises:
        ValueError: For scores of another shape, or `top` out of range.

    Example:

    >>> images, labels = mf_zoo.data.sample("cifar10")
    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> mf_zoo.applications.decode_predictions(model.predict(images[:1]), top=1)
    [[(3, 'cat', 0.92...)]]
    """
    scores = preds if isinstance(preds, np.ndarray) else keras.ops.convert_to_numpy(preds)
    classes = scores.shape[1] if scores.ndim == 2 else None
    expected = [len(class_names(dataset))] if dataset is not None else list(_DATASETS)
    if classes not in expected:
        raise ValueError(
            f"`preds` must be of shape (batch, {' or '.join(map(str, expected))}). "
            f"Received: {scores.shape}"
        )
    if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= classes:
        raise ValueError(f"`top` must be an integer from 1 to {classes}. Received: top={top!r}")
    names = class_names(dataset or _DATASETS[classes])
    order = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        [(int(label), names[label], float(row[label])) for label in labels]
        for row, labels in zip(scores, order, strict=True)
    ]
