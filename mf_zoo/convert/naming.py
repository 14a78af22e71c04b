"""What public repositories call the layers of residual networks. No Keras."""

import dataclasses
import types
from collections.abc import Iterable, Mapping

_Numbers = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Normalization:
    """How a repository normalises images in 0..1 before its networks see them.

    Args:
        repository: Who.
        dataset: Name of the dataset that the networks were trained on.
        mean: Mean of each channel, RGB.
        std: Standard deviation of each channel.
    """

    repository: str
    dataset: str
    mean: _Numbers
    std: _Numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Naming:
    """A way of naming the arrays of a residual network's state dict.

    Args:
        name: What it is called here.
        modules: For each layer of a network of the zoo the name of the module. `stage` and `unit`
            (a block of a stage) count from 1, `index` is that of the unit from 0, `number` that of
            the convolution in its block from 1; `part` and `next_stage` are `3 * (number - 1)` and
            `stage + 1`.
        normalizations: Those of the repositories that name so.
        preactivation: Whether the networks are pre-activation ones.
    """

    name: str
    modules: Mapping[str, str]
    normalizations: tuple[Normalization, ...]
    preactivation: bool = False

    def module(self, kind: str, stage: int = 0, unit: int = 0, number: int = 1) -> str:
        """The name of a module.

        Args:
            kind: A key of `modules`.
            stage, unit, number: Which one, each from 1.

        Example:

        >>> mf_zoo.convert.namings()["torchvision"].module("conv", stage=2, unit=1, number=2)
        'layer2.0.conv2'
        """
        part = 3 * (number - 1)
        return self.modules[kind].format(
            stage=stage,
            next_stage=stage + 1,
            unit=unit,
            index=unit - 1,
            number=number,
            part=part,
            part_after=part + 1,
        )


_CIFAR10 = ("cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
_CIFAR100 = ("cifar100", (0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_PYTORCHCV = (
    Normalization("pytorchcv", *_CIFAR10),
    Normalization("pytorchcv", "cifar100", *_CIFAR10[1:]),
)
_UNIT = "features.stage{stage}.unit{unit}"
_BLOCK = "layer{stage}.{index}"

_NAMINGS = {
    naming.name: naming
    for naming in (
        Naming(
            "pytorchcv",
            {
                "stem_conv": "features.init_block.conv",
                "stem_bn": "features.init_block.bn",
                "conv": _UNIT + ".body.conv{number}.conv",
                "bn": _UNIT + ".body.conv{number}.bn",
                "shortcut_conv": _UNIT + ".identity_conv.conv",
                "shortcut_bn": _UNIT + ".identity_conv.bn",
                "predictions": "output",
            },
            _PYTORCHCV,
        ),
        Naming(
            "pytorchcv, pre-activation",
            {
                "stem_conv": "features.init_block",
                "conv": _UNIT + ".body.conv{number}.conv",
                "bn": _UNIT + ".body.conv{number}.bn",
                "shortcut_conv": _UNIT + ".identity_conv",
                "last_bn": "features.post_activ.bn",
                "predictions": "output",
            },
            _PYTORCHCV,
            preactivation=True,
        ),
        # chenyaofo/pytorch-cifar-models and timm's resnet.py name as torchvision does.
        Naming(
            "torchvision",
            {
                "stem_conv": "conv1",
                "stem_bn": "bn1",
                "conv": _BLOCK + ".conv{number}",
                "bn": _BLOCK + ".bn{number}",
                "shortcut_conv": _BLOCK + ".downsample.0",
                "shortcut_bn": _BLOCK + ".downsample.1",
                "predictions": "fc",
            },
            (
                Normalization("chenyaofo/pytorch-cifar-models", *_CIFAR10),
                Normalization("chenyaofo/pytorch-cifar-models", *_CIFAR100),
                Normalization("torchvision and timm", "imagenet2012", *_IMAGENET),
            ),
        ),
        Naming(
            "kuangliu",
            {
                "stem_conv": "conv1",
                "stem_bn": "bn1",
                "conv": _BLOCK + ".conv{number}",
                "bn": _BLOCK + ".bn{number}",
                "shortcut_conv": _BLOCK + ".shortcut.0",
                "shortcut_bn": _BLOCK + ".shortcut.1",
                "predictions": "linear",
            },
            (
                Normalization("kuangliu/pytorch-cifar", *_CIFAR10),
                # Its shortcuts are identities: no array of them is in the state dict.
                Normalization("akamaster/pytorch_resnet_cifar10", "cifar10", *_IMAGENET),
            ),
        ),
        Naming(
            "weiaicunzai",
            {
                "stem_conv": "conv1.0",
                "stem_bn": "conv1.1",
                "conv": "conv{next_stage}_x.{index}.residual_function.{part}",
                "bn": "conv{next_stage}_x.{index}.residual_function.{part_after}",
                "shortcut_conv": "conv{next_stage}_x.{index}.shortcut.0",
                "shortcut_bn": "conv{next_stage}_x.{index}.shortcut.1",
                "predictions": "fc",
            },
            (
                Normalization(
                    "weiaicunzai/pytorch-cifar100",
                    "cifar100",
                    (0.5071, 0.4865, 0.4409),
                    (0.2673, 0.2564, 0.2762),
                ),
            ),
        ),
    )
}


def namings() -> Mapping[str, Naming]:
    """The ways of naming that `from_torch` knows.

    Returns:
        A read-only mapping from names to `Naming`s.

    Example:

    >>> list(mf_zoo.convert.namings())
    ['pytorchcv', 'pytorchcv, pre-activation', 'torchvision', 'kuangliu', 'weiaicunzai']
    """
    return types.MappingProxyType(_NAMINGS)


def recognize(names: Iterable[str]) -> Naming | None:
    """Tells how the arrays of a state dict are named, by the stem, the first block and the top.

    Args:
        names: Those of a state dict. A prefix `module.` of all of them does not count.

    Returns:
        The naming most of whose names are there; `None` if none has any.

    Example:

    >>> names = ["module.conv1.weight", "module.layer1.0.conv1.weight", "module.linear.weight"]
    >>> naming = mf_zoo.convert.recognize(names)
    >>> naming.name, [normalization.repository for normalization in naming.normalizations]
    ('kuangliu', ['kuangliu/pytorch-cifar', 'akamaster/pytorch_resnet_cifar10'])
    """
    names = [str(name) for name in names]
    if names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    modules = {name.rpartition(".")[0] for name in names}

    def found(naming: Naming) -> int:
        kinds = set(naming.modules)
        return sum(naming.module(kind, stage=1, unit=1) in modules for kind in kinds) + sum(
            naming.module(kind, stage=2, unit=1) in modules for kind in kinds if "short" in kind
        )

    best = max(_NAMINGS.values(), key=found)
    return best if found(best) else None
