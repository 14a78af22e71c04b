"""mf_zoo: residual networks trained in the mean-field view of depth, for Keras 3.

Subpackages are imported on first use, so that `import mf_zoo` needs nothing but Keras and
its active backend.
"""

import importlib

__version__ = "0.1.0"

_SUBPACKAGES = (
    "applications",
    "convert",
    "data",
    "deploy",
    "depth",
    "layers",
    "optimizers",
    "reporting",
    "theory",
    "training",
    "tuning",
    "visualize",
    "weights",
)

_FUNCTIONS = {"feature_info": "applications.features", "features": "applications.features"}

__all__ = ["__version__", *_FUNCTIONS, *_SUBPACKAGES]


def __getattr__(name: str):
    if name in _SUBPACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"{__name__}.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
