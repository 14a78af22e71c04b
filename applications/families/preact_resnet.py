"""He et al.'s residual networks with BatchNormalization and ReLU before each convolution."""

from mf_zoo import chains
from mf_zoo.applications.architectures import Architecture, Stem
from mf_zoo.applications.registry import register

_SOURCE = (
    "He, Zhang, Ren, Sun, *Identity Mappings in Deep Residual Networks*, ECCV 2016, with "
    "projection shortcuts"
)


def preact_resnet(depth: int) -> Architecture:
    """A pre-activation ResNet of basic blocks for CIFAR."""
    return Architecture(
        name=f"PreActResNet{depth}",
        title=f"pre-activation ResNet-{depth}",
        source=_SOURCE,
        block=chains.PREACT_BASIC,
        filters=(16, 32, 64),
        blocks=((depth - 2) // 6,) * 3,
        stem=Stem(16),
    )


def bottleneck_resnet(depth: int) -> Architecture:
    """A pre-activation ResNet of bottleneck blocks for CIFAR."""
    return Architecture(
        name=f"ResNet{depth}",
        title=f"ResNet-{depth}",
        source=_SOURCE,
        block=chains.PREACT_BOTTLENECK,
        filters=(16, 32, 64),
        blocks=((depth - 2) // 9,) * 3,
        stem=Stem(16),
    )


MFPreActResNet110, PreActResNet110 = register(preact_resnet(110))
MFResNet164, ResNet164 = register(bottleneck_resnet(164))
