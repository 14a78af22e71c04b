"""He et al.'s residual networks, with BatchNormalization and ReLU after each convolution."""

from mf_zoo import chains
from mf_zoo.applications.architectures import Architecture, Stem
from mf_zoo.applications.registry import register


def resnet(depth: int) -> Architecture:
    """A ResNet of basic blocks for CIFAR."""
    return Architecture(
        name=f"ResNet{depth}",
        title=f"ResNet-{depth}",
        source="He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016, "
        "section 4.2, with projection shortcuts",
        block=chains.BASIC,
        filters=(16, 32, 64),
        blocks=((depth - 2) // 6,) * 3,
        stem=Stem(16),
    )


def bottleneck_resnet(depth: int) -> Architecture:
    """A post-activation ResNet of bottleneck blocks for CIFAR."""
    return Architecture(
        name=f"PostActResNet{depth}",
        title=f"post-activation ResNet-{depth}",
        source="He, Zhang, Ren, Sun, *Identity Mappings in Deep Residual Networks*, ECCV 2016, "
        "the baseline of table 2, with projection shortcuts",
        block=chains.BOTTLENECK,
        filters=(16, 32, 64),
        blocks=((depth - 2) // 9,) * 3,
        stem=Stem(16),
    )


MFResNet20, ResNet20 = register(resnet(20))
MFResNet32, ResNet32 = register(resnet(32))
MFResNet44, ResNet44 = register(resnet(44))
MFResNet56, ResNet56 = register(resnet(56))
MFResNet110, ResNet110 = register(resnet(110))
MFPostActResNet164, PostActResNet164 = register(bottleneck_resnet(164))
