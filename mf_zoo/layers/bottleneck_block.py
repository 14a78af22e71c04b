"""1x1, 3x3 and 1x1 convolutions: the residual functions of deeper ResNets and of ResNeXt."""

from typing import Any

import keras

from mf_zoo import chains
from mf_zoo.layers.residual_function import ResidualFunction


@keras.saving.register_keras_serializable(package="mf_zoo")
class BottleneckBlock(ResidualFunction):
    """1x1, 3x3 and 1x1 convolutions with BatchNormalization: `f` in `x + f(x)`.

    `f(x) = BN(conv1(relu(BN(conv3(relu(BN(conv1(x))))))))`, without sum or last ReLU.

    Args:
        filters: Number of channels of the first two convolutions; the output has `4 * filters`.
        strides: Stride of the 3x3 convolution; a residual function of a stage has 1.
        **kwargs: Those of `BasicBlock`.

    Input and output shape:
        `(batch, rows, cols, channels)`, or with channels second; rows and columns are divided by
        `strides`, rounded up, and the output has `4 * filters` channels.

    Source: He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016, fig. 5.
    The stride is at the 3x3 convolution, as in all newer implementations, where the paper has it at
    the first.

    Example:

    >>> keras.ops.shape(BottleneckBlock(16)(keras.ops.ones((2, 8, 8, 64))))
    (2, 8, 8, 64)
    """

    kind = chains.BOTTLENECK
    expansion, preactivation = kind.expansion, kind.preactivation

    def __init__(self, filters: int, strides: int = 1, **kwargs: Any):
        self.check(filters=filters, strides=strides)
        super().__init__(
            self.kind.convolutions(filters, strides), self.kind.preactivation, **kwargs
        )
        self.filters = filters
        self.strides = strides

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters, "strides": self.strides}


@keras.saving.register_keras_serializable(package="mf_zoo")
class PreActBottleneckBlock(ResidualFunction):
    """1x1, 3x3 and 1x1 convolutions, each after BatchNormalization and ReLU: `f` in `x + f(x)`.

    Args:
        filters: Number of channels of the first two convolutions; the output has `4 * filters`.
        strides: Stride of the 3x3 convolution; a residual function of a stage has 1.
        first_activation: Whether it starts with BatchNormalization and ReLU. The entry block of a
            stage shares these with its shortcut and leaves them out.
        **kwargs: Those of `BasicBlock`.

    Input and output shape:
        As those of `BottleneckBlock`.

    Source: He, Zhang, Ren, Sun, *Identity Mappings in Deep Residual Networks*, ECCV 2016, fig. 1b
    and table 6.

    Example:

    >>> keras.ops.shape(PreActBottleneckBlock(16)(keras.ops.ones((2, 8, 8, 64))))
    (2, 8, 8, 64)
    """

    kind = chains.PREACT_BOTTLENECK
    expansion, preactivation = kind.expansion, kind.preactivation

    def __init__(
        self, filters: int, strides: int = 1, first_activation: bool = True, **kwargs: Any
    ):
        self.check(filters=filters, strides=strides)
        super().__init__(
            self.kind.convolutions(filters, strides),
            self.kind.preactivation,
            first_activation=first_activation,
            **kwargs,
        )
        self.filters = filters
        self.strides = strides

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters, "strides": self.strides}


@keras.saving.register_keras_serializable(package="mf_zoo")
class ResNeXtBlock(ResidualFunction):
    """1x1, grouped 3x3 and 1x1 convolutions with BatchNormalization: `f` in `x + f(x)`.

    A bottleneck whose 3x3 convolution has `cardinality` groups. For 64 filters each group is
    `width` channels wide, and in proportion for more: `filters * width / 64`.

    Args:
        filters: Number of filters; the output has `4 * filters` channels.
        cardinality: Number of groups.
        width: Channels of a group at 64 filters ("bottleneck width": `4` in ResNeXt-29 32x4d).
        strides: Stride of the grouped convolution; a residual function of a stage has 1.
        **kwargs: Those of `BasicBlock`.

    Input and output shape:
        As those of `BottleneckBlock`.

    Source: Xie, Girshick, Dollár, Tu, He, *Aggregated Residual Transformations for Deep Neural
    Networks*, CVPR 2017, fig. 3c and section 5.3.

    Example:

    >>> block = ResNeXtBlock(64, cardinality=32, width=4)
    >>> keras.ops.shape(block(keras.ops.ones((2, 8, 8, 256))))
    (2, 8, 8, 256)
    """

    kind = chains.RESNEXT
    expansion, preactivation = kind.expansion, kind.preactivation

    def __init__(self, filters: int, cardinality: int, width: int, strides: int = 1, **kwargs: Any):
        self.check(filters=filters, cardinality=cardinality, width=width, strides=strides)
        if filters * width % 64:
            raise ValueError(
                "`filters * width` must be a multiple of 64: the width is that of a group at 64 "
                f"filters. Received: filters={filters}, width={width}"
            )
        super().__init__(
            self.kind.convolutions(filters, cardinality, width, strides),
            self.kind.preactivation,
            **kwargs,
        )
        self.filters = filters
        self.cardinality = cardinality
        self.width = width
        self.strides = strides

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "cardinality": self.cardinality,
            "width": self.width,
            "strides": self.strides,
        }
