"""The residual networks of the zoo as descriptions, and how a description becomes a network."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import layers

from mf_zoo.layers import (
    BasicBlock,
    BatchNormalization,
    BottleneckBlock,
    MeanFieldStage,
    PreActBasicBlock,
    PreActBottleneckBlock,
    ResNeXtBlock,
)

# Per-channel mean and standard deviation of the CIFAR-10 training images, in units of 0..255.
MEAN = (125.307, 122.950, 113.865)
STD = (62.993, 62.089, 66.705)

_BATCH_NORMALIZATION = {"momentum": 0.9, "epsilon": 1.001e-5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """A residual network of three or so stages, without its head for some number of classes.

    Args:
        name: Name of the plain network, e.g. `"ResNet20"`.
        title: What people call it, e.g. `"ResNet-20"`.
        source: Where it comes from, for the documentation.
        block: Class of its residual function.
        filters: `filters` of the residual function, a number a stage.
        blocks: Number of residual blocks in each stage, the one at its head included.
        stem_filters: Number of channels before the first stage.
        block_arguments: Further arguments of the residual function.
    """

    name: str
    title: str
    source: str
    block: type[layers.Layer]
    filters: tuple[int, ...]
    blocks: int
    stem_filters: int
    block_arguments: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def preactivation(self) -> bool:
        """Whether BatchNormalization and ReLU come before the convolutions."""
        return self.block in (PreActBasicBlock, PreActBottleneckBlock)

    @property
    def channels(self) -> tuple[int, ...]:
        """Number of output channels of each stage."""
        expansion = 1 if self.block in (BasicBlock, PreActBasicBlock) else 4
        return tuple(expansion * filters for filters in self.filters)

    @property
    def has_head(self) -> tuple[bool, ...]:
        """For each stage whether a block at its head changes the shape, and is no particle."""
        first = self.channels[0] != self.stem_filters
        return (first, *(True for _ in self.filters[1:]))

    @property
    def particles(self) -> tuple[int, ...]:
        """Number of particles of each stage: its blocks but for the one at its head."""
        return tuple(self.blocks - head for head in self.has_head)

    def residual_function(self, stage: int, **arguments: Any) -> layers.Layer:
        """A new residual function of a stage, counted from 0."""
        return self.block(
            self.filters[stage], **self.block_arguments, **_BATCH_NORMALIZATION, **arguments
        )


def resnet(depth: int) -> Architecture:
    """He et al.'s post-activation ResNet of basic blocks for CIFAR."""
    return Architecture(
        name=f"ResNet{depth}",
        title=f"ResNet-{depth}",
        source="He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016,\n"
        "    section 4.2, with projection shortcuts",
        block=BasicBlock,
        filters=(16, 32, 64),
        blocks=(depth - 2) // 6,
        stem_filters=16,
    )


def preact_resnet(depth: int) -> Architecture:
    """He et al.'s pre-activation ResNet of basic blocks for CIFAR."""
    return Architecture(
        name=f"PreActResNet{depth}",
        title=f"pre-activation ResNet-{depth}",
        source="He, Zhang, Ren, Sun, *Identity Mappings in Deep Residual Networks*, ECCV 2016,\n"
        "    with projection shortcuts",
        block=PreActBasicBlock,
        filters=(16, 32, 64),
        blocks=(depth - 2) // 6,
        stem_filters=16,
    )


def bottleneck_resnet(depth: int, preactivation: bool) -> Architecture:
    """He et al.'s ResNet of bottleneck blocks for CIFAR."""
    return Architecture(
        name=f"ResNet{depth}",
        title=f"ResNet-{depth}" if preactivation else f"post-activation ResNet-{depth}",
        source="He, Zhang, Ren, Sun, *Identity Mappings in Deep Residual Networks*, ECCV 2016,\n"
        "    with projection shortcuts",
        block=PreActBottleneckBlock if preactivation else BottleneckBlock,
        filters=(16, 32, 64),
        blocks=(depth - 2) // 9,
        stem_filters=16,
    )


def resnext29(cardinality: int, width: int) -> Architecture:
    """Xie et al.'s ResNeXt-29 for CIFAR."""
    return Architecture(
        name=f"ResNeXt29_{cardinality}x{width}d",
        title=f"ResNeXt-29, {cardinality}x{width}d",
        source="Xie, Girshick, Dollár, Tu, He, *Aggregated Residual Transformations for Deep\n"
        "    Neural Networks*, CVPR 2017, section 5.3",
        block=ResNeXtBlock,
        filters=(64, 128, 256),
        blocks=3,
        stem_filters=64,
        block_arguments={"cardinality": cardinality, "width": width},
    )


def _axis() -> int:
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def _convolution(filters: int, size: int, name: str, strides: int = 1) -> layers.Layer:
    return layers.Conv2D(
        filters,
        size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )


def _normalization(name: str) -> layers.Layer:
    return BatchNormalization(axis=_axis(), **_BATCH_NORMALIZATION, name=name)


def _head_of_stage(x: Any, architecture: Architecture, stage: int) -> Any:
    """The block that changes the shape at the head of a stage: a plain residual block."""
    name, strides = f"head{stage + 1}", 1 if stage == 0 else 2
    shortcut = _convolution(architecture.channels[stage], 1, f"{name}_shortcut_conv", strides)
    arguments = {"strides": strides, "name": f"{name}_block"}
    if architecture.preactivation:
        # Block and shortcut share the activation.
        x = layers.ReLU(name=f"{name}_relu")(_normalization(f"{name}_bn")(x))
        block = architecture.residual_function(stage, first_activation=False, **arguments)
        return layers.Add(name=f"{name}_add")([shortcut(x), block(x)])
    block = architecture.residual_function(stage, **arguments)
    shortcut = _normalization(f"{name}_shortcut_bn")(shortcut(x))
    x = layers.Add(name=f"{name}_add")([shortcut, block(x)])
    return layers.ReLU(name=f"{name}_relu")(x)


def network(
    architecture: Architecture,
    *,
    name: str,
    input_tensor: Any = None,
    input_shape: tuple[int | None, ...],
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
        **stage_arguments: Those of `MeanFieldStage`, for all stages; without, the network is plain.

    The other arguments are those of the builders of `mf_zoo.applications`.
    """
    if input_tensor is None:
        inputs = layers.Input(shape=input_shape, name="images")
    elif keras.backend.is_keras_tensor(input_tensor):
        inputs = input_tensor
    else:
        inputs = layers.Input(tensor=input_tensor, shape=input_shape)
    x = layers.Normalization(
        axis=_axis(), mean=MEAN, variance=np.square(STD).tolist(), name="normalization"
    )(inputs)
    x = _convolution(architecture.stem_filters, 3, "stem_conv")(x)
    if not architecture.preactivation:
        x = layers.ReLU(name="stem_relu")(_normalization("stem_bn")(x))
    for stage, particles in enumerate(architecture.particles):
        if architecture.has_head[stage]:
            x = _head_of_stage(x, architecture, stage)
        x = MeanFieldStage(
            architecture.residual_function(stage),
            num_particles=particles,
            activation=None if architecture.preactivation else "relu",
            name=f"stage{stage + 1}",
            **{"train_times": False, **stage_arguments},
        )(x)
    if architecture.preactivation:
        x = layers.ReLU(name="last_relu")(_normalization("last_bn")(x))
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
