"""Grouped convolution."""

import keras


@keras.saving.register_keras_serializable(package="mf_zoo")
class GroupedConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` with `groups`."""
