"""Statistics of BatchNormalization estimated anew."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo import devices
from mf_zoo.layers import stages
from mf_zoo.layers.integrators import evaluations

# Of layers that a step evaluates several times: 1 - 2^-10, with which each of the evaluations
# counts, and all of them nearly the same.
_MOMENTUM = 0.9990234375


class _Training(keras.Model):
    """A model in training mode, where `predict_on_batch` compiles it for every backend."""

    def __init__(self, model: keras.Model):
        super().__init__(name="training")
        self.model = model

    def call(self, inputs: Any) -> Any:
        return self.model(inputs, training=True)


def recalibrate(model: keras.Model, images: Any, batch_size: int = 500) -> None:
    """Estimates the statistics of BatchNormalization anew, as an exact average over batches.

    Mean and variance of every BatchNormalization become the averages of those of all batches, each
    counting as many times as it has images: unlike the moving averages of a training they forget
    nothing and favour no batch. (Of a block that an integrator evaluates several times a step they
    are averages over its evaluations, too.) Within a batch every layer sees what it sees in
    training. Use it where weights have changed without training: after a change of depth, an
    average of weights, a lesion, or for images of another dataset.

    Args:
        model: A built model. Its statistics are changed, those of its stages too; its weights, its
            random generators and what is frozen are not.
        images: A few thousand training images, augmented as in training (that matters: crops with
            a border of zeros have other statistics than whole images). An array `(count, ...)`, or
            batches of inputs, or of inputs and labels, as `fit` takes them: `mf_zoo.data.batches`,
            another `keras.utils.PyDataset`, a `tf.data.Dataset`, a `DataLoader`, a generator that
            ends. All batches are used, once.
        batch_size: Images in a batch of an array; the statistics are those of batches of this size,
            so it should not be much smaller than in training. A single image left over is not used.

    Raises:
        ValueError: Without images or anything to estimate, for a batch of less than 2 images, or if
            a batch gives statistics that are no numbers. Then the model is left as it was.

    Source: Izmailov et al., *Averaging Weights Leads to Wider Optima and Better Generalization*,
    UAI 2018, arXiv 1803.05407, section 3.2 (for averages of weights).

    Example:

    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> deeper = mf_zoo.depth.refine(model, "MFResNet32")
    >>> images, labels = mf_zoo.data.sample("cifar10")
    >>> augment = mf_zoo.data.Augmentation(padding=4, flip=True)
    >>> batches = mf_zoo.data.batches(images, labels, 100, augment=augment)
    >>> mf_zoo.depth.recalibrate(deeper, batches)
    """
    estimate(in_training(model), images, batch_size)


def in_training(model: keras.Model) -> keras.Model:
    """A model in training mode, compiled, for one or several calls of `estimate`."""
    training = _Training(model)
    training.compile(jit_compile=devices.jit_compile())
    return training


def estimate(training: keras.Model, images: Any, batch_size: int = 500) -> None:
    """`recalibrate` of the model that `in_training` was given."""
    model = training.model
    if not isinstance(batch_size, int) or batch_size < 2:
        raise ValueError(
            f"`batch_size` must be an integer of at least 2. Received: batch_size={batch_size!r}"
        )
    layers = [(layer, count) for layer, count in _normalizations(model) if layer.trainable]
    statistics = list(_statistics(model))
    if not statistics:
        raise ValueError(
            "`model` must be built and have a BatchNormalization that is not frozen. "
            f"Received: model={model.name!r}"
        )
    before = [(v, np.array(ops.convert_to_numpy(v))) for v in model.variables]
    momenta = [layer.momentum for layer, _ in layers]
    totals = [np.zeros(tuple(variable.shape), "float64") for variable, _ in statistics]
    try:
        for layer, count in layers:
            layer.momentum = _momentum(count)
        counted = 0
        for batch in _batches(images, batch_size):
            if len(batch) < 2:
                continue  # which has no variance
            for variable, _ in statistics:  # the moving averages are those of this batch then
                variable.assign(np.zeros(tuple(variable.shape)))
            training.predict_on_batch(batch)
            counted += len(batch)
            for total, (variable, count) in zip(totals, statistics, strict=True):
                value = ops.convert_to_numpy(variable).astype("float64")
                total += len(batch) * value / (1 - _momentum(count) ** count)
        if not counted:
            raise ValueError(
                "`images` must be at least 2 images, in an array or in batches. "
                f"Received: images of type {type(images).__name__}"
            )
        if not all(np.all(np.isfinite(total)) for total in totals):
            raise ValueError(
                "The statistics of every batch must be finite. Received: some that are no numbers, "
                f"in {model.name!r}"
            )
    finally:
        for (layer, _), momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for variable, value in before:
            variable.assign(value)
    for total, (variable, _) in zip(totals, statistics, strict=True):
        variable.assign(total / counted)


def _batches(images: Any, batch_size: int) -> Iterator[Any]:
    """The inputs of each batch."""
    if hasattr(images, "shape"):
        for start in range(0, len(images), batch_size):
            yield images[start : start + batch_size]
        return
    if isinstance(images, keras.utils.PyDataset):
        dataset = images
        images = (dataset[index] for index in range(len(dataset)))
    for batch in images:
        yield ops.convert_to_numpy(batch[0] if isinstance(batch, (tuple, list)) else batch)


def _momentum(count: int) -> float:
    return 0.0 if count == 1 else _MOMENTUM


def _normalizations(model: keras.Model) -> Iterator[tuple[keras.layers.BatchNormalization, int]]:
    """Every BatchNormalization of a model, those that particles share too.

    With it comes how often it is evaluated in a step.
    """
    parts = [(model, 1)]
    parts += [(stage.template(), evaluations(stage.integrator)) for stage in stages(model)]
    for part, count in parts:
        for layer in part._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                yield layer, count


def _statistics(model: keras.Model) -> Iterator[tuple[Any, int]]:
    """The variables of the model that training mode sets to a batch's mean or variance.

    With each comes how often it is set in a step.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            yield from ((layer.moving_mean, 1), (layer.moving_variance, 1))
    for stage in stages(model):
        moving = {
            id(variable)
            for layer in stage.template()._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
            for variable in (layer.moving_mean, layer.moving_variance)
        }
        for variable, weight in zip(stage.template().variables, stage._stacked, strict=True):
            if id(variable) in moving:
                yield weight, evaluations(stage.integrator)
