"""Which values of a recipe are searched, and where. No Keras."""

import types
from collections.abc import Iterable, Mapping
from typing import Any

from mf_zoo import applications
from mf_zoo.training.recipes import Recipe, fields, parse_override

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
MEAN_FIELD = fields("stage", "times")  # values that only networks with learned times have
BATCHES = fields("batches", "augmentation")  # those that make the batches of arrays

# The length of a training is the same for all trials, and so is its precision; none grows, and none
# averages its weights.
_FIXED = ("name", "description", *fields("run", "averaging", "growth"), "warmup_epochs")


def recipe_values() -> list[str]:
    """Names of the recipe values that a search may change."""
    return [name for name in fields() if name not in _FIXED]


def default_search(models: Iterable[str], pretrained: bool) -> list[str]:
    """What is searched where nothing else is said.

    Args:
        models: Names of models.
        pretrained: Whether they start from weights, which were trained with stages of their own.

    Returns:
        The names of `SPACE` that apply: without the values of learned times if no model has them,
        and without those of the stages for pretrained weights.
    """
    left_out = fields("stage") if pretrained else []
    if not any(applications.network(name).mean_field for name in models):
        left_out = MEAN_FIELD
    return [name for name in SPACE if name not in left_out]


def check_recipe(recipe: Recipe) -> None:
    """Checks that the trials of a search can train as a recipe says.

    Args:
        recipe: The recipe.

    Raises:
        ValueError: If it has a value that no search takes.
    """
    for name, reason in {
        "ladder": "A search trains every network from its beginning",
        "ema_momentum": "A search measures the weights of the last step",
    }.items():
        if value := getattr(recipe, name):
            raise ValueError(f"{reason}: its recipe has no `{name}`. Received: {name}={value!r}")


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
