"""Zagoruyko and Komodakis's wide residual networks: few layers, many channels."""

from mf_zoo import chains
from mf_zoo.applications.architectures import Architecture, Stem
from mf_zoo.applications.registry import register


def wide_resnet(depth: int, width: int) -> Architecture:
    """A WideResNet of pre-activation basic blocks for CIFAR, `width` times as wide as a ResNet."""
    return Architecture(
        name=f"WideResNet{depth}_{width}",
        title=f"WideResNet-{depth}-{width}",
        source="Zagoruyko, Komodakis, *Wide Residual Networks*, BMVC 2016, arXiv 1605.07146, "
        "without dropout",
        block=chains.PREACT_BASIC,
        filters=(16 * width, 32 * width, 64 * width),
        blocks=((depth - 4) // 6,) * 3,
        stem=Stem(16),
    )


MFWideResNet28_10, WideResNet28_10 = register(wide_resnet(28, 10))
