"""How a description becomes a network with random weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

import mf_zoo.layers
from mf_zoo.applications.architectures import Architecture, Normalization
from mf_zoo.applications.inputs import cifar10_normalization
from mf_zoo.chains import Chain
from mf_zoo.layers import BatchNormalization, Conv2D, MeanFieldStage

# The last layer of the stem: of these names the first that a network has.
STEM_LAYERS = ("stem_pool", "stem_relu", "stem_conv")
# What follows the last stage of pre-activation networks.
LAST_LAYER = "last_relu"


def residual_function(architecture: Architecture, stage: int, **arguments: Any) -> layers.Layer:
    """A new residual function of a stage, counted from 0."""
    block = architecture.block
    if isinstance(block, Chain):
        block = getattr(mf_zoo.layers, block.layer)
    return block(
        architecture.filters[stage],
        **architecture.block_arguments,
        **dataclasses.asdict(architecture.normalization),
        **arguments,
    )


def _axis() -> int:
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def _convolution(
    filters: int, size: int, name: str, strides: int = 1, padded: bool = False
) -> layers.Layer:
    return Conv2D(
        filters,
        size,
        strides=strides,
        padding="valid" if padded else "same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )


def _normalization(settings: Normalization, name: str) -> layers.Layer:
    return BatchNormalization(axis=_axis(), **dataclasses.asdict(settings), name=name)


def _stem(x: Any, architecture: Architecture) -> Any:
    """What comes before the first stage; what is strided is padded on all sides alike."""
    stem = architecture.stem
    if stem.strides > 1:
        x = layers.ZeroPadding2D(stem.kernel_size // 2, name="stem_pad")(x)
    x = _convolution(stem.filters, stem.kernel_size, "stem_conv", stem.strides, stem.strides > 1)(x)
    if not architecture.preactivation:
        x = layers.ReLU(name="stem_relu")(_normalization(architecture.normalization, "stem_bn")(x))
    if stem.pooling:
        x = layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
        x = layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)
    return x


def _identity_shortcut(x: Any, channels: int, strides: int, name: str) -> Any:
    """Every `strides`-th row and column, between channels of zeros."""
    if strides > 1:
        x = layers.AveragePooling2D(1, strides=strides, name=f"{name}_shortcut_pool")(x)
    axis = range(4)[_axis()]
    before, odd = divmod(channels - x.shape[axis], 2)
    # An operation of Keras and no layer of ours: Keras alone loads a network that was folded.
    return ops.pad(x, [(before, before + odd) if k == axis else (0, 0) for k in range(4)])


def _entry_block(x: Any, architecture: Architecture, stage: int) -> Any:
    """The block that changes the shape at the start of a stage: a plain residual block."""
    # The names are those of weight files.
    name, strides = f"head{stage + 1}", architecture.strides[stage]
    normalization = architecture.normalization
    projected, channels = architecture.shortcut == "projection", architecture.channels[stage]

    def shortcut(x: Any) -> Any:
        if projected:
            return _convolution(channels, 1, f"{name}_shortcut_conv", strides)(x)
        return _identity_shortcut(x, channels, strides, name)

    arguments = {"strides": strides, "name": f"{name}_block"}
    if architecture.preactivation:
        # Block and shortcut share the activation.
        x = layers.ReLU(name=f"{name}_relu")(_normalization(normalization, f"{name}_bn")(x))
        block = residual_function(architecture, stage, first_activation=False, **arguments)
        return layers.Add(name=f"{name}_add")([shortcut(x), block(x)])
    block = residual_function(architecture, stage, **arguments)
    skip = shortcut(x)
    if projected:
        skip = _normalization(normalization, f"{name}_shortcut_bn")(skip)
    x = layers.Add(name=f"{name}_add")([skip, block(x)])
    return layers.ReLU(name=f"{name}_relu")(x)


def assemble(
    architecture: Architecture,
    *,
    name: str,
    input_tensor: Any = None,
    input_shape: tuple[int | None, ...],
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
    include_top: bool = True,
    pooling: str | None = None,
    classes: int = 10,
    classifier_activation: Any = None,
    **stage_arguments: Any,
) -> keras.Model:
    """Builds a network with random weights.

    Args:
        architecture: Its description.
        name: Name of the model.
        normalization: Mean and standard deviation of each channel, 0..255; `None` for CIFAR-10's.
        **stage_arguments: Those of `MeanFieldStage`, for all stages; without, the network is plain.

    The other arguments are those of the builders of `mf_zoo.applications`.
    """
    if input_tensor is None:
        inputs = layers.Input(shape=input_shape, name="images")
    elif keras.backend.is_keras_tensor(input_tensor):
        inputs = input_tensor
    else:
        inputs = layers.Input(tensor=input_tensor, shape=input_shape)
    mean, std = normalization or cifar10_normalization()
    x = layers.Normalization(
        axis=_axis(), mean=list(mean), variance=np.square(std).tolist(), name="normalization"
    )(inputs)
    x = _stem(x, architecture)
    for stage, particles in enumerate(architecture.particles):
        if architecture.has_entry[stage]:
            x = _entry_block(x, architecture, stage)
        x = MeanFieldStage(
            residual_function(architecture, stage),
            num_particles=particles,
            activation=None if architecture.preactivation else "relu",
            name=f"stage{stage + 1}",
            **{"train_times": False, **stage_arguments},
        )(x)
    if architecture.preactivation:
        x = layers.ReLU(name=LAST_LAYER)(_normalization(architecture.normalization, "last_bn")(x))
    if include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dense(classes, name="predictions")(x)
        # In float32 under mixed precision too: probabilities want the digits.
        x = layers.Activation(classifier_activation, dtype="float32", name="scores")(x)
    elif pooling is not None:
        kind = {"avg": layers.GlobalAveragePooling2D, "max": layers.GlobalMaxPooling2D}[pooling]
        x = kind(name=f"{pooling}_pool")(x)
    if input_tensor is not None:
        inputs = keras.utils.get_source_inputs(inputs)
        inputs = inputs[0] if len(inputs) == 1 else inputs
    return keras.Model(inputs, x, name=name)
