"""The residual function of He et al.'s post-activation ResNets."""

from typing import Any

import keras
from keras import layers

from mf_zoo.layers.batch_normalization import BatchNormalization


@keras.saving.register_keras_serializable(package="mf_zoo")
class BasicBlock(keras.layers.Layer):
    """Two 3x3 convolutions with BatchNormalization: `f` in `x + f(x)`, without sum or last ReLU.

    `f(x) = BN(conv(relu(BN(conv(x)))))`. It ends in scale and shift, which it names in
    `output_scale_variables`, so that a stage can multiply `f` by a step size at no cost.

    Args:
        filters: Number of output channels of both convolutions.
        strides: Stride of the first convolution; a residual function of a stage has 1.
        kernel_initializer: Initializer of both kernels.
        momentum: Momentum of the moving averages of BatchNormalization.
        epsilon: Added to the variance, dimensionless.
        data_format: `"channels_last"`, `"channels_first"` or `None` for Keras's setting.
        **kwargs: Keyword arguments of `keras.layers.Layer`.

    Input and output shape:
        `(batch, rows, cols, channels)`, or with channels second; rows and columns are divided by
        `strides`.

    Source: He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016, fig. 2.

    Example:

    >>> BasicBlock(16)(keras.ops.ones((2, 8, 8, 16))).shape
    (2, 8, 8, 16)
    """

    def __init__(
        self,
        filters: int,
        strides: int = 1,
        kernel_initializer: Any = "he_normal",
        momentum: float = 0.9,
        epsilon: float = 1.001e-5,
        data_format: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if not (isinstance(filters, int) and filters > 0):
            raise ValueError(f"`filters` must be a positive integer. Received: filters={filters}")
        if not (isinstance(strides, int) and strides > 0):
            raise ValueError(f"`strides` must be a positive integer. Received: strides={strides}")
        self.filters = filters
        self.strides = strides
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.momentum = momentum
        self.epsilon = epsilon
        self.data_format = data_format or keras.config.image_data_format()
        axis = 1 if self.data_format == "channels_first" else -1

        def convolution(name: str, strides: int) -> layers.Layer:
            return layers.Conv2D(
                filters,
                3,
                strides=strides,
                padding="same",
                use_bias=False,
                # Its own copy: an initializer without a seed draws the same values each time.
                kernel_initializer=self.kernel_initializer.clone()
                if isinstance(self.kernel_initializer, keras.initializers.Initializer)
                else self.kernel_initializer,
                data_format=self.data_format,
                dtype=self.dtype_policy,
                name=name,
            )

        def normalization(name: str) -> layers.Layer:
            return BatchNormalization(
                axis=axis, momentum=momentum, epsilon=epsilon, dtype=self.dtype_policy, name=name
            )

        self.conv1 = convolution("conv1", strides)
        self.bn1 = normalization("bn1")
        self.relu = layers.ReLU(dtype=self.dtype_policy, name="relu")
        self.conv2 = convolution("conv2", 1)
        self.bn2 = normalization("bn2")

    @property
    def output_scale_variables(self) -> list[Any]:
        """Variables in which the output is linear: scaling them all scales the output."""
        return [self.bn2.gamma, self.bn2.beta]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        for layer in (self.conv1, self.bn1, self.relu, self.conv2, self.bn2):
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        x = self.relu(self.bn1(self.conv1(inputs), training=training))
        return self.bn2(self.conv2(x), training=training)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return self.conv2.compute_output_shape(self.conv1.compute_output_shape(input_shape))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "strides": self.strides,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "data_format": self.data_format,
        }
