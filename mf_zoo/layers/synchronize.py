"""Statistics of BatchNormalization over all devices that share a batch."""

import keras

from mf_zoo.layers.batch_normalization import BatchNormalization
from mf_zoo.layers.mean_field_stage import MeanFieldStage


def synchronize_statistics(model: keras.Model, synchronized: bool = True) -> None:
    """Has BatchNormalization take its statistics over the whole batch, or over a device's part.

    Where a batch is divided among devices, each normalises its part by the part's own mean and
    variance, unless they are synchronised; then the model trains as on one device with the whole
    batch. To be called before the first training step. `mf-zoo train --distribute data` does.

    Args:
        model: A model whose layers are `mf_zoo.layers.BatchNormalization`, in mean-field stages or
            outside.
        synchronized: Whether the statistics are those of the whole batch. (On JAX they always
            are: there a divided batch is one array.)

    Example:

    >>> model = mf_zoo.applications.MFResNet20()
    >>> mf_zoo.layers.synchronize_statistics(model)
    """
    for layer in model._flatten_layers():
        if isinstance(layer, BatchNormalization):
            layer.synchronized = synchronized
        elif isinstance(layer, MeanFieldStage):
            synchronize_statistics(layer.template(), synchronized)
