"""Reporting: tables and pictures from the results of campaigns."""

import importlib

_PUBLIC = {
    "Cell": "cells",
    "PUBLISHED": "published",
    "cells": "cells",
    "draw": "pictures",
    "markdown": "report",
    "read_results": "cells",
    "t_interval": "statistics",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
