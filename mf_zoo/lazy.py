"""Packages whose public names are imported on first use."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def attach(
    package: str, public: Mapping[str, str]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """What a package needs to import its public names on first use.

    Args:
        package: Its `__name__`.
        public: For each public name the module of the package that defines it. No name may be that
            of a module: once imported, the module would take its place.

    Returns:
        `__all__`, `__getattr__` and `__dir__` of the package.

    Example:

    >>> __all__, __getattr__, __dir__ = lazy.attach(__name__, {"train": "runner"})
    """
    names = sorted(public)

    def find(name: str) -> Any:
        if name in public:
            return getattr(importlib.import_module(f"{package}.{public[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return names, find, lambda: names
