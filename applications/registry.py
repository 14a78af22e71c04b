"""The networks by name, mean-field and plain. No Keras."""

import dataclasses
import fnmatch
import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from mf_zoo.applications.architectures import Architecture
from mf_zoo.applications.builders import MeanFieldBuilder, PlainBuilder

if TYPE_CHECKING:
    import keras

_NETWORKS: dict[str, "Network"] = {}
_imported: set[str] = set()  # names of the modules of families


@dataclasses.dataclass(frozen=True)
class Network:
    """What the registry knows of a network.

    Args:
        name: Its name, such as `"MFResNet20"`.
        architecture: Its `Architecture`.
        mean_field: Whether its times are learned.
        builder: What makes it, a callable with the signature of `keras.applications`. A builder of
            your own takes at least `weights`, `classes` and `classifier_activation`, and a
            mean-field one `quadrature`, `horizon`, `initial_times`, `reorder` and `integrator`.
    """

    name: str
    architecture: Architecture
    mean_field: bool
    builder: Callable[..., "keras.Model"]


def register(architecture: Architecture) -> tuple[MeanFieldBuilder, PlainBuilder]:
    """Makes an architecture known by name: to `mf_zoo.applications` and to the command `mf-zoo`.

    Two networks are made of it: `architecture.name`, whose times are fixed on the grid, and `MF`
    before that name, whose times are learned.

    Args:
        architecture: The network. To register it a second time changes nothing.

    Returns:
        The builder of the mean-field network and that of the plain one.

    Raises:
        ValueError: For a name that another network has.

    Example:

    ```python
    from mf_zoo import applications, chains

    MFResNet18, ResNet18 = applications.register(
        applications.Architecture(
            name="ResNet18",
            title="ResNet-18",
            source="He et al., CVPR 2016",
            block=chains.BASIC,
            filters=(64, 128, 256, 512),
            blocks=(2, 2, 2, 2),
            stem=applications.Stem(64, kernel_size=7, strides=2, pooling=True),
            image_shape=(224, 224, 3),
            purpose="images of 224 pixels",
        )
    )
    model = applications.MFResNet18(classes=1000)
    ```
    """
    builders = MeanFieldBuilder(architecture), PlainBuilder(architecture)
    for builder in builders:
        register_network(Network(builder.__name__, architecture, builder.mean_field, builder))
    return builders


def register_network(network: Network) -> None:
    """Makes a network with a builder of one's own known by name, as `register` does.

    Args:
        network: The entry. What `mf-zoo list` and `mf-zoo info` tell of it is what its
            architecture says.

    Raises:
        ValueError: For a name that another network has.
    """
    known = _NETWORKS.get(network.name)
    if known is not None and known.architecture != network.architecture:
        raise ValueError(
            f"`name` must be new: {known.name} is {known.architecture.title} already. "
            f"Received: name={network.name!r} of {network.architecture.title}"
        )
    _NETWORKS[network.name] = network


def networks() -> dict[str, Network]:
    """All networks by name, in the order of their registration.

    Returns:
        A new dictionary.
    """
    # Not `from ... import families`, which would ask the package for a network of that name.
    families = importlib.import_module("mf_zoo.applications.families")
    for module in pkgutil.iter_modules(families.__path__):
        if module.name not in _imported:
            _imported.add(module.name)  # before the import: a family may ask for networks itself
            importlib.import_module(f"{families.__name__}.{module.name}")
    return dict(_NETWORKS)


def list_models(pattern: str = "*", pretrained: bool | str = False) -> list[str]:
    """Names of the ready-built networks.

    Args:
        pattern: Wildcards as in a shell, in any case: `"mf*29*"`.
        pretrained: Whether to list only networks that have registered weights; the name of weights,
            such as `"cifar100"`, for only those that have these.

    Returns:
        The names: mean-field networks first, each kind from few parameters to many.

    Example:

    >>> mf_zoo.applications.list_models("mf*29*")
    ['MFResNeXt29_32x4d', 'MFResNeXt29_8x64d', 'MFResNeXt29_16x64d']
    """
    found = [
        network
        for network in sorted(networks().values(), key=_order)
        if fnmatch.fnmatch(network.name.lower(), pattern.lower())
    ]
    if pretrained:
        from mf_zoo import weights

        having = {
            record.model
            for record in weights.records()
            if pretrained is True or record.name == pretrained
        }
        found = [network for network in found if network.name in having]
    return [network.name for network in found]


def _order(network: Network) -> tuple[bool, float]:
    architecture = network.architecture
    size = float("inf") if architecture.chain is None else architecture.parameters()
    return not network.mean_field, size


def network(name: str) -> Network:
    """Finds a network by its name.

    Args:
        name: One of `list_models()`, such as `"MFResNet20"`.

    Returns:
        Its entry: `name`, `architecture`, `mean_field`, `builder`.

    Raises:
        ValueError: For an unknown name; the message lists the right ones.

    Example:

    >>> mf_zoo.applications.network("MFResNet20").mean_field
    True
    """
    found = networks().get(name)
    if found is None:
        raise ValueError(f"Model must be one of {list_models()}. Received: {name!r}")
    return found


def get(name: str) -> Callable[..., "keras.Model"]:
    """Finds a network's builder by its name.

    Args:
        name: One of `list_models()`, such as `"MFResNet20"`.

    Returns:
        The builder, with the signature of `keras.applications`.

    Raises:
        ValueError: For an unknown name; the message lists the right ones.

    Example:

    >>> mf_zoo.applications.get("ResNet56")().count_params()
    860051
    """
    return network(name).builder


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
    return network(name).architecture
