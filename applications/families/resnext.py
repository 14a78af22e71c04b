"""Xie et al.'s ResNeXt, whose bottleneck blocks have grouped convolutions."""

from mf_zoo import chains
from mf_zoo.applications.architectures import Architecture, Stem
from mf_zoo.applications.registry import register


def resnext29(cardinality: int, width: int) -> Architecture:
    """A ResNeXt-29 for CIFAR."""
    return Architecture(
        name=f"ResNeXt29_{cardinality}x{width}d",
        title=f"ResNeXt-29, {cardinality}x{width}d",
        source="Xie, Girshick, Dollár, Tu, He, *Aggregated Residual Transformations for Deep "
        "Neural Networks*, CVPR 2017, section 5.3",
        block=chains.RESNEXT,
        filters=(64, 128, 256),
        blocks=(3, 3, 3),
        stem=Stem(64),
        block_arguments={"cardinality": cardinality, "width": width},
    )


MFResNeXt29_32x4d, ResNeXt29_32x4d = register(resnext29(32, 4))
MFResNeXt29_8x64d, ResNeXt29_8x64d = register(resnext29(8, 64))
MFResNeXt29_16x64d, ResNeXt29_16x64d = register(resnext29(16, 64))
