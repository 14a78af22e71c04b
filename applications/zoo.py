"""The networks of the zoo, each mean-field and plain, and how to find them."""

import fnmatch
from collections.abc import Callable

import keras

from mf_zoo import weights
from mf_zoo.applications.builders import builder
from mf_zoo.applications.network import (
    Architecture,
    bottleneck_resnet,
    preact_resnet,
    resnet,
    resnext29,
)

_BUILDERS: dict[str, Callable[..., keras.Model]] = {}
_ARCHITECTURES: dict[str, Architecture] = {}


def _twins(
    architecture: Architecture, variant: Architecture | None = None
) -> tuple[Callable[..., keras.Model], Callable[..., keras.Model]]:
    """Registers a network's mean-field and plain builders."""
    builders = (builder(architecture, True, variant), builder(architecture, False, variant))
    for build in builders:
        _BUILDERS[build.__name__] = build
        _ARCHITECTURES[build.__name__] = architecture
    return builders


MFResNet20, ResNet20 = _twins(resnet(20))
MFResNet32, ResNet32 = _twins(resnet(32))
MFResNet44, ResNet44 = _twins(resnet(44))
MFResNet56, ResNet56 = _twins(resnet(56))
MFResNet110, ResNet110 = _twins(resnet(110))
MFPreActResNet110, PreActResNet110 = _twins(preact_resnet(110))
MFResNet164, ResNet164 = _twins(
    bottleneck_resnet(164, preactivation=True), bottleneck_resnet(164, preactivation=False)
)
MFResNeXt29_32x4d, ResNeXt29_32x4d = _twins(resnext29(32, 4))
MFResNeXt29_8x64d, ResNeXt29_8x64d = _twins(resnext29(8, 64))
MFResNeXt29_16x64d, ResNeXt29_16x64d = _twins(resnext29(16, 64))


def list_models(pattern: str = "*", pretrained: bool | str = False) -> list[str]:
    """Names of the ready-built networks.

    Args:
        pattern: Wildcards as in a shell, in any case: `"mf*29*"`.
        pretrained: Whether to list only networks that have registered weights; the name of weights,
            such as `"cifar100"`, for only those that have these.

    Returns:
        The names: mean-field networks first, from small to large.

    Example:

    >>> mf_zoo.applications.list_models("mf*29*")
    ['MFResNeXt29_32x4d', 'MFResNeXt29_8x64d', 'MFResNeXt29_16x64d']
    """
    names = sorted(_BUILDERS, key=lambda name: not name.startswith("MF"))
    found = [name for name in names if fnmatch.fnmatch(name.lower(), pattern.lower())]
    if not pretrained:
        return found
    wanted = weights.records()
    if isinstance(pretrained, str):
        wanted = [record for record in wanted if record.name == pretrained]
    having = {record.model for record in wanted}
    return [name for name in found if name in having]


def get(name: str) -> Callable[..., keras.Model]:
    """Finds a network's builder by its name.

    Args:
        name: One of `list_models()`, such as `"MFResNet20"`.

    Returns:
        The builder: a function with the signature of `keras.applications`.

    Raises:
        ValueError: For an unknown name; the message lists the right ones.

    Example:

    >>> mf_zoo.applications.get("ResNet56")().count_params()
    860051
    """
    if name not in _BUILDERS:
        raise ValueError(f"Model must be one of {list_models()}. Received: {name!r}")
    return _BUILDERS[name]


def architecture(name: str) -> Architecture:
    """The description of a network.

    Args:
        name: One of `list_models()`, such as `"MFResNet20"`; twins share their description.

    Returns:
        An `Architecture`: `title`, `block`, `filters`, `blocks`, `particles`, ...

    Raises:
        ValueError: For an unknown name; the message lists the right ones.

    Example:

    >>> mf_zoo.applications.architecture("MFResNet56").particles
    (9, 8, 8)
    """
    get(name)
    return _ARCHITECTURES[name]
