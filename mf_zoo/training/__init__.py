"""Training: recipes, the loop around `model.fit`, its callbacks, and evaluation.

Everything is imported on first use, so that naming a recipe needs no Keras.
"""

import importlib

_PUBLIC = {
    "RECIPES": "recipes",
    "Evaluation": "evaluation",
    "Recipe": "recipes",
    "RunError": "runs",
    "evaluate": "evaluation",
    "get_recipe": "recipes",
    "learning_rate_schedule": "schedules",
    "train": "runner",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
