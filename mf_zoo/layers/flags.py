"""Which parts of a layer are trained: read from one layer, set in another of the same make."""

from collections.abc import Sequence

import keras


def trainable_parts(layer: keras.layers.Layer) -> list[bool]:
    """The flags `trainable` of a layer and of all layers in it.

    Args:
        layer: Any Keras layer or model.

    Returns:
        A flag for each, a layer before the layers in it.
    """
    return [part.trainable for part in layer._flatten_layers()]


def set_trainable_parts(layer: keras.layers.Layer, flags: Sequence[bool]) -> bool:
    """Sets what `trainable_parts` returned, in a layer of the same make.

    Args:
        layer: The layer. Where it has the flag already nothing is touched, so that a variable with
            a flag of its own keeps it.
        flags: What `trainable_parts` returned.

    Returns:
        Whether there was a flag for each part; if not, nothing is set.
    """
    parts = layer._flatten_layers()
    if len(parts) != len(flags):
        return False
    for part, flag in zip(parts, flags, strict=True):
        if part.trainable != flag:
            part.trainable = flag  # of the layers in it too, whose turn comes later
    return True
