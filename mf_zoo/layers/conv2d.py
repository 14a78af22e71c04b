"""Keras's Conv2D without copies of its input on PyTorch."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="mf_zoo")
class Conv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` that copies no input on PyTorch.

    Same arguments, weights and values. With channels last Keras writes the input twice on PyTorch,
    to channels first and back, before each convolution, and keeps a copy for the gradient. There
    this layer passes a view. Elsewhere it is Keras's own code.

    Args:
        **kwargs: Those of `keras.layers.Conv2D`.

    Example:

    >>> keras.ops.shape(Conv2D(16, 3)(keras.ops.ones((2, 8, 8, 3))))
    (2, 6, 6, 16)
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        # Measured on a CPU: benchmarks/results/torch_step.csv.
        if keras.config.backend() != "torch" or self.data_format != "channels_last":
            return super().convolution_op(inputs, kernel)
        inputs, kernel = ops.convert_to_tensor(inputs), ops.convert_to_tensor(kernel)
        # Of a kernel that has channels last in memory PyTorch makes outputs that have, too.
        kernel = kernel.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
        outputs = ops.conv(
            inputs.permute(0, 3, 1, 2),
            kernel,
            strides=self.strides,
            padding=self.padding,
            data_format="channels_first",
            dilation_rate=self.dilation_rate,
        )
        return outputs.permute(0, 2, 3, 1)
