"""What reading a dataset of tensorflow-datasets takes, whether into memory or as a stream."""

from typing import Any

import numpy as np

MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's names for numbers of channels


def import_tfds() -> Any:
    """tensorflow-datasets with its TensorFlow, which leaves the GPUs to Keras's backend."""
    import contextlib

    import keras
    import tensorflow as tf
    import tensorflow_datasets as tfds

    if keras.backend.backend() != "tensorflow":
        # Here TensorFlow only decodes files; left alone it would reserve the whole memory of
        # every GPU. RuntimeError: it is in use already, and keeps what it has.
        with contextlib.suppress(RuntimeError):
            tf.config.set_visible_devices([], "GPU")
    return tfds


def image_and_label(builder: Any, image: str = "image", label: str = "label") -> tuple[Any, Any]:
    """The features of tensorflow-datasets that a dataset of image classification has.

    Args:
        builder: The builder of tensorflow-datasets.
        image: Name of the feature with the image.
        label: Name of the feature with the label.

    Raises:
        ValueError: If the dataset is of another kind.
    """
    import tensorflow_datasets as tfds

    features = builder.info.features
    features = dict(features.items()) if isinstance(features, tfds.features.FeaturesDict) else {}
    found = features.get(image), features.get(label)
    if (
        not isinstance(found[0], tfds.features.Image)
        or not isinstance(found[1], tfds.features.ClassLabel)
        or found[0].np_dtype != np.uint8
        or len(found[0].shape) != 3
        or found[0].shape[2] not in MODES
    ):
        raise ValueError(
            f"The dataset must be one of image classification, with the features `{image}`, uint8 "
            f"(height, width, {' or '.join(map(str, MODES))}), and `{label}`, a ClassLabel. "
            f"Received: {builder.data_path} with {features}"
        )
    return found
