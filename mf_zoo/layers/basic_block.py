"""Two 3x3 convolutions: the residual functions of the shallower ResNets."""

from typing import Any

import keras

from mf_zoo import chains
from mf_zoo.layers.residual_function import ResidualFunction


@keras.saving.register_keras_serializable(package="mf_zoo")
class BasicBlock(ResidualFunction):
    """Two 3x3 convolutions with BatchNormalization: `f` in `x + f(x)`, without sum or last ReLU.

    `f(x) = BN(conv(relu(BN(conv(x)))))`. It ends in scale and shift, which it names in
    `output_scale_variables`, so that a stage can multiply `f` by a step size at no cost.

    Args:
        filters: Number of output channels of both convolutions.
        strides: Stride of the first convolution; a residual function of a stage has 1.
        kernel_initializer: Initializer of every kernel.
        momentum: Momentum of the moving averages of BatchNormalization.
        epsilon: Added to the variance, dimensionless.
        data_format: `"channels_last"`, `"channels_first"` or `None` for Keras's setting.
        **kwargs: Keyword arguments of `keras.layers.Layer`.

    Input and output shape:
        `(batch, rows, cols, channels)`, or with channels second; rows and columns are divided by
        `strides`, rounded up.

    Source: He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016, fig. 2.

    Example:

    >>> keras.ops.shape(BasicBlock(16)(keras.ops.ones((2, 8, 8, 16))))
    (2, 8, 8, 16)
    """

    kind = chains.BASIC
    expansion, preactivation = kind.expansion, kind.preactivation

    def __init__(self, filters: int, strides: int = 1, **kwargs: Any):
        self.check(filters=filters, strides=strides)
        super().__init__(
            self.kind.convolutions(filters, strides),
            self.kind.preactivation,
            **kwargs,
        )
        self.filters = filters
        self.strides = strides

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters, "strides": self.strides}


@keras.saving.register_keras_serializable(package="mf_zoo")
class PreActBasicBlock(ResidualFunction):
    """Two 3x3 convolutions, each after BatchNormalization and ReLU: `f` in `x + f(x)`.

    `f(x) = conv(relu(BN(conv(relu(BN(x))))))`. The output is linear in the last kernel, which it
    names in `output_scale_variables`.

    Args:
        filters: Number of output channels of both convolutions.
        strides: Stride of the first convolution; a residual function of a stage has 1.
        first_activation: Whether it starts with BatchNormalization and ReLU. The entry block of a
            stage shares these with its shortcut and leaves them out.
        **kwargs: Those of `BasicBlock`.

    Input and output shape:
        As those of `BasicBlock`.

    Source: He, Zhang, Ren, Sun, *Identity Mappings in Deep Residual Networks*, ECCV 2016, fig. 1b.

    Example:

    >>> keras.ops.shape(PreActBasicBlock(16)(keras.ops.ones((2, 8, 8, 16))))
    (2, 8, 8, 16)
    """

    kind = chains.PREACT_BASIC
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
