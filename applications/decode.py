"""From scores to the names of classes."""

from typing import Any

import keras
import numpy as np

from mf_zoo import data


def decode_predictions(
    preds: Any, top: int = 5, dataset: str | None = None
) -> list[list[tuple[int, str, float]]]:
    """The classes with the highest scores, by name, as in `keras.applications`.

    Args:
        preds: Scores `(batch, classes)`, as a model of the zoo predicts them: probabilities, or
            logits, which are given back as they are.
        top: Number of classes for each image.
        dataset: Name of the dataset that the classes are of; `None` for the first registered one
            that has as many: CIFAR-10, CIFAR-100, ...

    Returns:
        For each image a list of `top` tuples `(label, class name, score)`, highest score first
        and, of equal scores, lowest label first.

    Raises:
        ValueError: For an unknown dataset, scores of another shape, or `top` out of range.

    Example:

    >>> images, labels = mf_zoo.data.sample("cifar10")
    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> mf_zoo.applications.decode_predictions(model.predict(images[:1], verbose=0), top=1)
    [[(3, 'cat', 0.97...)]]
    """
    scores = preds if isinstance(preds, np.ndarray) else keras.ops.convert_to_numpy(preds)
    classes = scores.shape[1] if scores.ndim == 2 else None
    records = [data.get(name) for name in (data.names() if dataset is None else [dataset])]
    record = next((record for record in records if record.classes == classes), None)
    if record is None:
        expected = " or ".join(str(size) for size in dict.fromkeys(r.classes for r in records))
        raise ValueError(f"`preds` must be of shape (batch, {expected}). Received: {scores.shape}")
    if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= classes:
        raise ValueError(f"`top` must be an integer from 1 to {classes}. Received: top={top!r}")
    if scores.dtype.kind not in "fiu" or np.isnan(scores).any():
        raise ValueError(
            "`preds` must be real numbers. Received: "
            + ("nan among them" if scores.dtype.kind == "f" else f"dtype {scores.dtype}")
        )
    # From the right, for there is no -score of whole numbers without a sign.
    ascending = np.argsort(scores[:, ::-1], axis=1, kind="stable")
    order = (classes - 1 - ascending[:, ::-1])[:, :top]
    return [
        [(int(label), record.class_names[label], float(row[label])) for label in labels]
        for row, labels in zip(scores, order, strict=True)
    ]
