"""Grouped convolution at a usable speed on the CPU."""

from typing import Any

import keras
from keras import ops

from mf_zoo.devices import accelerator
from mf_zoo.layers.conv2d import Conv2D

# Input channels that one convolution should have, at least.
_WIDTH = 16


@keras.saving.register_keras_serializable(package="mf_zoo")
class GroupedConv2D(Conv2D):
    """`keras.layers.Conv2D` with `groups` that trains at a usable speed on TensorFlow and JAX.

    Same arguments, weights and values. On the CPU these two backends compute the gradients of a
    grouped convolution by loops that take hundreds of times as long as PyTorch's. There this layer
    makes ordinary convolutions instead, one for every few groups: groups are merged, with zeros
    between them in the kernel, until a convolution has 16 input channels (narrower ones cost as
    much as wide ones). On an accelerator and on PyTorch it is Keras's own code.

    Args:
        **kwargs: Those of `keras.layers.Conv2D`.

    Example:

    >>> keras.ops.shape(GroupedConv2D(64, 3, groups=16)(keras.ops.ones((2, 8, 8, 32))))
    (2, 6, 6, 64)
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        # Measured on a CPU, forward and backward: native over this, 26 to 360 times
        # (benchmarks/results/grouped_convolution-tensorflow.csv and -jax.csv).
        if (
            self.groups == 1
            or keras.config.backend() not in ("tensorflow", "jax")
            or accelerator() is not None
        ):
            return super().convolution_op(inputs, kernel)
        rows, columns, depth, filters = kernel.shape
        merged = _merged(self.groups, depth)
        count = self.groups // merged
        # From (rows, columns, in, out), one block of `out` a group, to a block-diagonal kernel for
        # each of `count` convolutions: (rows, columns, merged * in, count, merged * out).
        kernel = ops.reshape(
            kernel, (rows, columns, 1, depth, count, merged, filters // self.groups)
        )
        diagonal = ops.reshape(ops.eye(merged, dtype=kernel.dtype), (merged, 1, 1, merged, 1))
        kernels = ops.reshape(
            kernel * diagonal, (rows, columns, merged * depth, count, filters // count)
        )
        axis = -1 if self.data_format == "channels_last" else 1
        parts = [
            ops.conv(
                part,
                part_kernel,
                strides=self.strides,
                padding=self.padding,
                data_format=self.data_format,
                dilation_rate=self.dilation_rate,
            )
            for part, part_kernel in zip(
                ops.split(inputs, count, axis=axis), ops.unstack(kernels, axis=3), strict=True
            )
        ]
        return ops.concatenate(parts, axis=axis)


def _merged(groups: int, depth: int) -> int:
    """How many groups of `depth` input channels one convolution takes."""
    return next(
        merged
        for merged in range(1, groups + 1)
        if groups % merged == 0 and (merged * depth >= _WIDTH or merged == groups)
    )
