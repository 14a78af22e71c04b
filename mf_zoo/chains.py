"""Residual functions as data: the convolutions of each kind of block, without Keras.

The layers of `mf_zoo.layers` are made from these chains, and architectures count their weights and
multiply-adds with them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

# What the shortcut of a block that changes the shape can be, see
# `mf_zoo.applications.architectures.Architecture`.
SHORTCUTS = ("projection", "identity")


class Convolution(NamedTuple):
    """One convolution of a residual function: without bias, and padded to keep the size."""

    filters: int
    kernel_size: int
    strides: int = 1
    groups: int = 1

    def kernel(self, channels: int) -> int:
        """Number of weights of its kernel, for an input of `channels` channels."""
        return self.kernel_size**2 * channels // self.groups * self.filters


class Weights(NamedTuple):
    """How many weights something has: those that are trained, and others: moving averages."""

    trained: int = 0
    others: int = 0

    def __add__(self, other: tuple[int, int]) -> "Weights":
        return Weights(self.trained + other[0], self.others + other[1])

    def times(self, count: int) -> "Weights":
        """Those of `count` of them."""
        return Weights(count * self.trained, count * self.others)


def batch_normalization(channels: int) -> Weights:
    """The weights of a BatchNormalization: scale and shift, mean and variance."""
    return Weights(2 * channels, 2 * channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """A kind of residual function: a chain of convolutions, each with BatchNormalization.

    Args:
        layer: Name of its class in `mf_zoo.layers`.
        convolutions: Makes the chain, from input to output, of `filters`, `strides` and the
            further arguments of the layer.
        preactivation: Whether BatchNormalization and ReLU come before their convolution.
        expansion: Number of output channels for each of `filters`.

    Example:

    >>> mf_zoo.chains.BOTTLENECK.convolutions(16)[-1]
    Convolution(filters=64, kernel_size=1, strides=1, groups=1)
    """

    layer: str
    convolutions: Callable[..., Sequence[Convolution]]
    preactivation: bool = False
    expansion: int = 1

    def weights(
        self, channels: int, filters: int, first_activation: bool = True, **arguments: int
    ) -> Weights:
        """The weights of one block.

        Args:
            channels: Number of channels of its input.
            filters: The layer's `filters`.
            first_activation: Whether a pre-activation block starts with BatchNormalization.
            **arguments: Further arguments of the layer.

        Returns:
            A `Weights`.
        """
        total = Weights()
        for number, convolution in enumerate(self.convolutions(filters, **arguments)):
            total += (convolution.kernel(channels), 0)
            if not self.preactivation:
                total += batch_normalization(convolution.filters)
            elif number > 0 or first_activation:
                total += batch_normalization(channels)
            channels = convolution.filters
        return total

    def multiply_adds(
        self, rows: int, cols: int, channels: int, filters: int, **arguments: int
    ) -> int:
        """The multiply-adds of one block for one image.

        Args:
            rows, cols: Size of its input.
            channels: Number of channels of its input.
            filters: The layer's `filters`.
            **arguments: Further arguments of the layer.

        Returns:
            The number.
        """
        total = 0
        for convolution in self.convolutions(filters, **arguments):
            rows, cols = strided(rows, cols, convolution.strides)
            total += rows * cols * convolution.kernel(channels)
            channels = convolution.filters
        return total


def strided(rows: int, cols: int, strides: int) -> tuple[int, int]:
    """The size that a padded convolution or pooling of these strides leaves."""
    return -(-rows // strides), -(-cols // strides)


_BOTTLENECK_EXPANSION = 4


def _basic(filters: int, strides: int = 1) -> Sequence[Convolution]:
    return Convolution(filters, 3, strides), Convolution(filters, 3)


def _three(filters: int, strides: int, width: int, groups: int = 1) -> Iterator[Convolution]:
    yield Convolution(width, 1)
    yield Convolution(width, 3, strides, groups)
    yield Convolution(_BOTTLENECK_EXPANSION * filters, 1)


def _bottleneck(filters: int, strides: int = 1) -> Sequence[Convolution]:
    return tuple(_three(filters, strides, filters))


def _resnext(filters: int, cardinality: int, width: int, strides: int = 1) -> Sequence[Convolution]:
    return tuple(_three(filters, strides, cardinality * filters * width // 64, cardinality))


BASIC = Chain(layer="BasicBlock", convolutions=_basic)
PREACT_BASIC = Chain(layer="PreActBasicBlock", convolutions=_basic, preactivation=True)
BOTTLENECK = Chain(
    layer="BottleneckBlock", convolutions=_bottleneck, expansion=_BOTTLENECK_EXPANSION
)
PREACT_BOTTLENECK = Chain(
    layer="PreActBottleneckBlock",
    convolutions=_bottleneck,
    preactivation=True,
    expansion=_BOTTLENECK_EXPANSION,
)
RESNEXT = Chain(layer="ResNeXtBlock", convolutions=_resnext, expansion=_BOTTLENECK_EXPANSION)
