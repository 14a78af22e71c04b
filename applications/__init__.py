"""Ready-built networks with pretrained weights: mean-field ResNets and their plain twins."""

from mf_zoo.applications.resnet import (
    MFResNet20,
    MFResNet32,
    MFResNet44,
    MFResNet56,
    MFResNet110,
    ResNet20,
    ResNet32,
    ResNet44,
    ResNet56,
    ResNet110,
    get,
    names,
)

__all__ = [
    "MFResNet20",
    "MFResNet32",
    "MFResNet44",
    "MFResNet56",
    "MFResNet110",
    "ResNet20",
    "ResNet32",
    "ResNet44",
    "ResNet56",
    "ResNet110",
    "get",
    "names",
]
