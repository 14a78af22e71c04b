"""Statistics of BatchNormalization for weights that no step of the optimizer made."""

import keras
import numpy as np

from mf_zoo import depth
from mf_zoo.errors import user_errors
from mf_zoo.training import assembly
from mf_zoo.training.distribution import Group
from mf_zoo.training.settings import RunSettings

# Training images, the first ones, augmented as in training, on which statistics are measured.
RECALIBRATION_IMAGES = 5_000


def recalibrate(
    network: keras.Model, images: np.ndarray, settings: RunSettings, group: Group
) -> str:
    """Measures the statistics of BatchNormalization anew, as training sees them.

    Args:
        network: The network.
        images: The training images, of which the first 5,000 are used, augmented.
        settings: The settings of the run.
        group: Who trains.

    Returns:
        A few words that say what was done.

    Raises:
        UserError: If there is nothing to measure.
    """
    images = images[:RECALIBRATION_IMAGES]
    labels = np.zeros(len(images), "int64")
    # Everybody measures all of it: the batches need not be such that devices can share them.
    with user_errors(), group.alone():
        batches = assembly.make_batches(images, labels, settings.recipe, settings.seed, 2)
        depth.recalibrate(network, batches)
    return f"statistics of BatchNormalization measured on {len(images):,} training images"


def use_average(
    network: keras.Model, images: np.ndarray, settings: RunSettings, group: Group
) -> None:
    """Puts the optimizer's average of the weights in their place, if the recipe keeps one.

    The statistics of BatchNormalization are measured anew. A second call changes nothing.

    Args: those of `recalibrate`.

    Raises:
        UserError: If the network has no BatchNormalization that is not frozen.
    """
    if settings.recipe.ema_momentum:
        with group.scope():
            network.optimizer.finalize_variable_values(network.trainable_variables)
        recalibrate(network, images, settings, group)
