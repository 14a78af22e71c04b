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
        `__all__`, `__getattr__` and `__dir__` of the package. Its modules that define public names
        are attributes as well, as if they had been imported with it.

    Example:

    >>> names, find, _ = mf_zoo.lazy.attach("mf_zoo", {"one_line": "errors"})
    >>> names, find("one_line")(ValueError("a message"))
    (['one_line'], 'a message')
    """
    names, modules = sorted(public), frozenset(public.values())

    def find(name: str) -> Any:
        if name in public:
            return getattr(importlib.import_module(f"{package}.{public[name]}"), name)
        if name in modules:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return names, find, lambda: names
