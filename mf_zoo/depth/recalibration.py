"""Statistics of BatchNormalization estimated anew."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo import devices
from mf_zoo.layers import stages


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
    nothing and favour no batch. Within a batch every layer sees what it sees in training. Use it
    where weights have changed without training: after a change of depth, an average of weights, a
    lesion, or for images of another dataset.

    Args:
        model: A built model. Its statistics are changed, those of its stages too; its weights, its
            random generators and what is frozen are not.
        images: Inputs of the model, an array `(count, ...)`: training images without their labels,
            a few thousand. (The model normalises them inside, as in training.)
        batch_size: Images in a batch; the statistics are those of batches of this size, so it
            should not be much smaller than in training. A single image left over is not used.

    Raises:
        ValueError: Without images or anything to estimate, for a batch of less than 2 images, or if
            a batch gives statistics that are no numbers. Then the model is left as it was.

    Source: Izmailov et al., *Averaging Weights Leads to Wider Optima and Better Generalization*,
    UAI 2018, arXiv 1803.05407, section 3.2 (for averages of weights).

    Example:

    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> deeper = mf_zoo.depth.refine(model, "MFResNet32")
    >>> images, _ = mf_zoo.data.sample("cifar10")
    >>> mf_zoo.depth.recalibrate(deeper, images, batch_size=100)
    """
    if not isinstance(batch_size, int) or batch_size < 2:
        raise ValueError(
            f"`batch_size` must be an integer of at least 2. Received: batch_size={batch_size!r}"
        )
    if len(images) < 2:
        raise ValueError(f"`images` must be at least 2. Received: {len(images)} images")
    layers = [layer for layer in _normalizations(model) if layer.trainable]
    statistics = list(_statistics(model))
    if not statistics:
        raise ValueError(
            "`model` must be built and have a BatchNormalization that is not frozen. "
            f"Received: model={model.name!r}"
        )
    before = [(v, np.array(ops.convert_to_numpy(v))) for v in model.variables]
    momenta = [layer.momentum for layer in layers]
    totals = [np.zeros(tuple(variable.shape), "float64") for variable in statistics]
    try:
        for layer in layers:
            layer.momentum = 0.0  # the moving averages are those of the last batch then
        training = _Training(model)
        training.compile(jit_compile=devices.jit_compile())
        counted = 0
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            if len(batch) < 2:
                continue  # which has no variance
            training.predict_on_batch(batch)
            counted += len(batch)
            for total, variable in zip(totals, statistics, strict=True):
                total += len(batch) * ops.convert_to_numpy(variable).astype("float64")
        if not all(np.all(np.isfinite(total)) for total in totals):
            raise ValueError(
                "The statistics of every batch must be finite. Received: some that are no numbers, "
                f"in {model.name!r}"
            )
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for variable, value in before:
            variable.assign(value)
    for total, variable in zip(totals, statistics, strict=True):
        variable.assign(total / counted)


def _normalizations(model: keras.Model) -> Iterator[keras.layers.BatchNormalization]:
    """Every BatchNormalization of a model, those that particles share too."""
    for part in (model, *(stage.template() for stage in stages(model))):
        for layer in part._flatten_layers():
            if isinstance(layer, keras.layers.BatchNormalization):
                yield layer


def _statistics(model: keras.Model) -> Iterator[Any]:
    """The variables of the model that training mode sets to a batch's mean or variance."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            yield from (layer.moving_mean, layer.moving_variance)
    for stage in stages(model):
        moving = {
            id(variable)
            for layer in stage.template()._flatten_layers()
            if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
            for variable in (layer.moving_mean, layer.moving_variance)
        }
        for variable, weight in zip(stage.template().variables, stage._stacked, strict=True):
            if id(variable) in moving:
                yield weight
