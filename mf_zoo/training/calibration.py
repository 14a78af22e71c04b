"""Calibration: probabilities that say how often they are right."""

from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.training.evaluation import Evaluation, measure

# Between them every temperature that a network can need: beyond, its scores say nothing.
_LEAST, _MOST = 1e-3, 1e3


def fit_temperature(scores: np.ndarray, labels: np.ndarray) -> float:
    """The temperature by which a classifier's logits are divided best.

    `softmax(logits / T)` has the same most probable class for every `T`; the returned `T` gives the
    least negative log-likelihood of the labels. It is above 1 for a network that is too sure of
    itself. The labels must be of images that the network was not trained on.

    Args:
        scores: Logits, or logarithms of probabilities, as in `Evaluation.log_probabilities`; float
            `(N, classes)`.
        labels: The right classes, integers `(N,)`.

    Returns:
        The temperature, positive.

    Raises:
        ValueError: If there is not one label for each row, or a label is no class.

    Example:

    Three of four images are right, so each should be given the probability 3/4. Logits 0 and
    `log 9` give 9/10, and half of them 3/4:

    >>> logits = np.log([[1, 9], [1, 9], [1, 9], [1, 9]])
    >>> round(mf_zoo.training.fit_temperature(logits, np.array([1, 1, 1, 0])), 4)
    2.0

    Source: Guo, Pleiss, Sun, Weinberger, *On Calibration of Modern Neural Networks*, ICML 2017,
    arXiv 1706.04599, section 4.2.
    """
    from scipy import optimize, special

    scores, labels = np.asarray(scores, "float64"), np.asarray(labels)
    if (
        scores.ndim != 2
        or labels.shape != (len(scores),)
        or not len(scores)
        or not 0 <= labels.min() <= labels.max() < scores.shape[1]
    ):
        raise ValueError(
            "`scores` must be of shape (N, classes), and `labels` one class for each row. "
            f"Received: scores of shape {scores.shape}, labels of shape {labels.shape}"
        )
    of_label = scores[np.arange(len(labels)), labels]

    def loss(inverse: float) -> float:  # convex in 1/T
        return float(np.mean(special.logsumexp(scores * inverse, axis=1) - of_label * inverse))

    found = optimize.minimize_scalar(
        loss, bounds=(1 / _MOST, 1 / _LEAST), method="bounded", options={"xatol": 1e-9}
    )
    return float(1 / found.x)


def calibrate(
    scores: np.ndarray, labels: np.ndarray, count: int, **measured: Any
) -> tuple[float, Evaluation, Evaluation]:
    """Fits a temperature on the first rows, and measures the others without and with it.

    Args:
        scores, labels: As in `fit_temperature`.
        count: Number of rows to fit on.
        **measured: Further arguments of `mf_zoo.training.evaluation.measure`.

    Returns:
        The temperature and the two evaluations.

    Example:

    >>> logits = np.log(np.tile([[1, 9]], (8, 1)))
    >>> temperature, before, after = calibrate(logits, np.array([1, 1, 1, 0] * 2), 4)
    >>> round(temperature, 4), round(before.ece, 2), round(after.ece, 2)
    (2.0, 15.0, 0.0)
    """
    temperature = fit_temperature(scores[:count], labels[:count])
    before, after = (
        measure(rest, labels[count:], from_logits=True, **measured)
        for rest in (scores[count:], scores[count:] / temperature)
    )
    return temperature, before, after


def divide_logits(model: keras.Model, temperature: float) -> None:
    """Divides a classifier's logits by a temperature, in place: kernel and bias of its head.

    The model keeps its layers and its most probable classes; only its probabilities change. It is
    saved, folded and exported like any other.

    Args:
        model: A model that ends in a `keras.layers.Dense` and a softmax, or without the softmax.
        temperature: What to divide by, positive; see `fit_temperature`.

    Raises:
        ValueError: If the model ends otherwise, or the temperature is not positive.

    Example:

    >>> model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(2)])
    >>> model.set_weights([np.eye(2), np.zeros(2)])
    >>> mf_zoo.training.divide_logits(model, 2.0)
    >>> print(model.predict(np.array([[3.0, 1.0]]), verbose=0))
    [[1.5 0.5]]
    """
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"`temperature` must be positive. Received: temperature={temperature}")
    ends = (keras.activations.softmax, keras.activations.linear)
    layers: list[Any] = list(model.layers)
    if layers and getattr(layers[-1], "activation", None) in ends and len(layers[-1].weights) == 0:
        layers.pop()  # the activation as a layer of its own
    last = layers[-1] if layers else None
    if not isinstance(last, keras.layers.Dense) or last.activation not in ends:
        raise ValueError(
            "The last layer with weights must be a Dense layer, with a softmax at most after it. "
            f"Received: {last!r}"
        )
    for variable in (last.kernel, last.bias):
        if variable is not None:
            variable.assign(ops.divide(variable, temperature))
