"""Tuning by keras-tuner: a hypermodel of the zoo, and searches that survive kills.

Everything is imported on first use, for keras-tuner is optional.
"""

import importlib

_PUBLIC = {
    "MeanFieldHyperModel": "hypermodel",
    "SPACE": "space",
    "ray_recipe": "ray",
    "ray_space": "ray",
    "ray_tune": "ray",
    "tune": "search",
    "work": "search",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
