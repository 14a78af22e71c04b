"""Tuning by keras-tuner: a hypermodel of the zoo, and searches that survive kills.

Everything is imported on first use, for keras-tuner is optional.
"""

import importlib

_PUBLIC = {
    "MeanFieldHyperModel": "hypermodel",
    "SPACE": "space",
    "tune": "search",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
