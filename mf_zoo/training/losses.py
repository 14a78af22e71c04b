"""Cross-entropy of logits against integer labels, with label smoothing."""

import keras


@keras.saving.register_keras_serializable(package="mf_zoo")
class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy of logits, with label smoothing, for integer or soft labels.

    Keras has label smoothing for one-hot labels only; a run keeps integer labels, one eightieth
    of the size, unless mixup or CutMix makes them soft.

    Args:
        label_smoothing: Weight of the uniform distribution in the target, in [0, 1)
            (Szegedy et al., 2016).
        reduction: As in `keras.losses.Loss`.
        name: As in `keras.losses.Loss`.
        dtype: As in `keras.losses.Loss`.

    Example:

    >>> import numpy as np
    >>> loss = SmoothedCrossentropy(label_smoothing=0.1)
    >>> round(float(loss(np.array([0]), np.zeros((1, 4), "float32"))), 4)  # the logarithm of 4
    1.3863
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        reduction="sum_over_batch_size",
        name="smoothed_crossentropy",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"`label_smoothing` must be in [0, 1). Received: label_smoothing={label_smoothing}"
            )
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        classes = y_pred.shape[-1]
        if len(y_true.shape) < len(y_pred.shape) or y_true.shape[-1] != classes:
            y_true = keras.ops.reshape(y_true, keras.ops.shape(y_pred)[:-1])
            y_true = keras.ops.one_hot(keras.ops.cast(y_true, "int32"), classes, dtype=y_pred.dtype)
        return keras.losses.categorical_crossentropy(
            y_true, y_pred, from_logits=True, label_smoothing=self.label_smoothing
        )

    def get_config(self):
        return {**super().get_config(), "label_smoothing": self.label_smoothing}
