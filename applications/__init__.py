"""Ready-built networks with pretrained weights: mean-field ResNets and their plain twins.

Each network is an attribute by its name: `mf_zoo.applications.MFResNet20(weights="cifar10")`. The
names are those of `list_models()`, with what a user's own package registers. Nothing here needs
Keras before a network is built.
"""

import importlib
from typing import TYPE_CHECKING

from mf_zoo.applications.architectures import Architecture as Architecture
from mf_zoo.applications.architectures import Normalization as Normalization
from mf_zoo.applications.architectures import Stem as Stem
from mf_zoo.applications.inputs import normalization_of as normalization_of
from mf_zoo.applications.registry import Network as Network
from mf_zoo.applications.registry import architecture as architecture
from mf_zoo.applications.registry import get as get
from mf_zoo.applications.registry import list_models as list_models
from mf_zoo.applications.registry import network as network
from mf_zoo.applications.registry import networks
from mf_zoo.applications.registry import register as register
from mf_zoo.applications.registry import register_network as register_network

if TYPE_CHECKING:
    from mf_zoo.applications.builders import MeanFieldBuilder
    from mf_zoo.applications.decode import decode_predictions as decode_predictions
    from mf_zoo.applications.statistics import multiply_adds as multiply_adds

# The public names apart from those of networks. `X as X` above has type checkers know that as well.
_PUBLIC = [
    "Architecture",
    "Network",
    "Normalization",
    "Stem",
    "architecture",
    "decode_predictions",
    "get",
    "list_models",
    "multiply_adds",
    "network",
    "normalization_of",
    "register",
    "register_network",
]
_NEED_KERAS = {"decode_predictions": "decode", "multiply_adds": "statistics"}


# For type checkers every network has the arguments of mean-field ones. The exact types are those of
# the modules in `mf_zoo.applications.families`.
def __getattr__(name: str) -> "MeanFieldBuilder":
    if name in _NEED_KERAS:
        return getattr(importlib.import_module(f"{__name__}.{_NEED_KERAS[name]}"), name)
    if name == "__all__":
        return __dir__()
    # Python asks for names of its own, and the imports of families for this package's modules.
    found = None if name.startswith("__") else networks().get(name)
    if found is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found.builder


def __dir__() -> list[str]:
    return sorted([*_PUBLIC, *networks()])
