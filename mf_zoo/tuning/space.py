"""Which values of a recipe are searched, and where; what needs no keras-tuner to be told."""

import dataclasses
import types
from collections.abc import Iterable, Mapping
from typing import Any

from mf_zoo.training.recipes import Recipe, parse_override

SEARCH = "search.json"  # the settings of a search, in its folder
TUNERS = ("random", "bayesian", "hyperband", "grid")

# A list is a choice, a pair (low, high) a range: logarithmic from a decade on.
SPACE: Mapping[str, list | tuple] = types.MappingProxyType(
    {
        "quadrature": ["backward", "midpoint", "uniform"],
        "initial_times": ["grid", "random"],
        "time_learning_rate_multiplier": (0.01, 100.0),
        "horizon": (0.5, 8.0),
        "mean_field_scaling": [False, True],
        "learning_rate": (0.01, 1.0),
        "momentum": [0.8, 0.9, 0.95, 0.98],
        "nesterov": [False, True],
        "weight_decay": (1e-5, 5e-3),
        "label_smoothing": [0.0, 0.05, 0.1],
        "batch_size": [32, 64, 128, 256],
        "padding": [0, 2, 4],
        "flip": [False, True],
        "cutout": [0, 8, 16],
        "mixup": [0.0, 0.2, 1.0],
        "cutmix": [0.0, 0.2, 1.0],
    }
)
# What only models with learned times have, and of that what is a property of weights.
MEAN_FIELD = (
    "quadrature",
    "initial_times",
    "reorder",
    "time_learning_rate_multiplier",
    "horizon",
    "mean_field_scaling",
    "noise_temperature",
)
STAGES = ("quadrature", "initial_times", "reorder", "horizon")
# What makes the batches of arrays; a dataset has its own.
BATCHES = ("batch_size", "padding", "flip", "cutout", "mixup", "cutmix")

_FIXED = ("name", "description", "epochs", "warmup_epochs", "dtype_policy")


def recipe_values() -> list[str]:
    """Names of the recipe values that a search may change."""
    return [field.name for field in dataclasses.fields(Recipe) if field.name not in _FIXED]


def check_space(search: Iterable[str] | Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Checks a search space and fills in the ranges of `SPACE`.

    Args:
        search: Names of recipe values, or a mapping from them to a list (a choice), a pair
            `(low, high)` (a range of numbers) or `None` (the range of `SPACE`).
        recipe: The recipe whose values hold elsewhere; every end of a range must be a value that
            it could have.

    Returns:
        A dictionary from names to lists and pairs.

    Raises:
        ValueError: For a name or a value that a recipe does not know.
    """
    given = dict(search) if isinstance(search, Mapping) else dict.fromkeys(search)
    if not given:
        raise ValueError(f"A search needs at least one value to search. Received: {search!r}")
    space = {}
    for name, values in given.items():
        if values is None:
            values = SPACE.get(name)
        if name in _FIXED:
            raise ValueError(
                f"`{name}` is fixed in a search; set it in the recipe. Received: {name!r}"
            )
        if values is None and hasattr(recipe, name):
            raise ValueError(
                f"`{name}` has no range of its own and must be given one. Received: {name!r}"
            )
        if not isinstance(values, (list, tuple, type(None))) or (
            isinstance(values, tuple)
            and not (
                len(values) == 2
                and all(type(value) in (int, float) for value in values)
                and values[0] < values[1]
            )
        ):
            raise ValueError(
                f"The values of `{name}` must be a list, or a pair of numbers (low, high). "
                f"Received: {values!r}"
            )
        # As values of a recipe: of its types, and within its bounds.
        checked = [getattr(recipe.replace(**{name: value}), name) for value in values or [None]]
        if len(set(checked)) < len(checked) or not checked or None in checked:
            raise ValueError(
                f"The values of `{name}` must be different from each other, and not None. "
                f"Received: {values!r}"
            )
        space[name] = type(values)(checked)
    # In the order of SPACE: what other values depend on comes first.
    order = list(SPACE)
    return dict(sorted(space.items(), key=lambda item: (*order, item[0]).index(item[0])))


def parse_search(texts: Iterable[str]) -> dict[str, Any]:
    """Reads a search space from `name`, `name=low:high` and `name=a,b,c`.

    Example:

    >>> parse_search(["momentum", "learning_rate=0.01:1", "cutout=0,8"])
    {'momentum': None, 'learning_rate': (0.01, 1), 'cutout': [0, 8]}
    """
    space = {}
    for text in texts:
        name, separator, values = (part.strip() for part in text.partition("="))
        if not separator:
            space[name] = None
            continue
        mark = ":" if ":" in values else ","
        parts = [parse_override(f"{name}={part}")[1] for part in values.split(mark)]
        space[name] = tuple(parts) if mark == ":" else parts
    return space


def format_search(space: Mapping[str, list | tuple]) -> list[str]:
    """Writes a search space as `parse_search` reads it.

    Example:

    >>> format_search({"learning_rate": (0.01, 1.0), "cutout": [0, 8]})
    ['learning_rate=0.01:1.0', 'cutout=0,8']
    """
    return [
        f"{name}=" + (":" if isinstance(values, tuple) else ",").join(map(str, values))
        for name, values in space.items()
    ]
