"""Training recipes: every setting of a run as data."""

import contextlib
import dataclasses
import difflib
import itertools
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mf_zoo.chains import SHORTCUTS
from mf_zoo.errors import short
from mf_zoo.files import read_toml

_LARGEST = 9_999_999  # of whole values: files of a run and their readers have room for them


def _value(default: Any, part: str, **bounds: Any) -> Any:
    """A field of `Recipe`: its default, what it belongs to, and the bounds of its value.

    Args:
        default: The default.
        part: What it belongs to, see `fields`.
        **bounds: `choices`, a tuple of names; `above`, `least` or `below`, a number.
    """
    return dataclasses.field(default=default, metadata={"part": part, **bounds})


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All settings of a training run that change its outcome, apart from model, data and seed.

    Weight decay is always the coupled (L2) one of He et al., 2016: it is added to the gradient
    before the momentum. `fields` tells which part of a training a value belongs to. Models without
    learned times ignore what the optimizer does to particles.

    Args:
        name: Name under which the recipe is found.
        description: One line saying what it is for.
        epochs: Passes over the training images.
        batch_size: Images per step.
        learning_rate: Peak learning rate.
        schedule: `"step"` (divided by 10 at 1/2 and at 3/4 of the epochs), `"cosine"` (to 0)
            or `"one_cycle"` (linear rise from 1/25 of the peak, cosine to 0).
        warmup_epochs: Length of the rise, in epochs, may be a fraction. `"step"` runs at a
            tenth of the learning rate for so long, as He et al. do for ResNet-110; `"cosine"`
            rises linearly from 0.
        momentum: Momentum of SGD, in [0, 1).
        nesterov: Whether the momentum is Nesterov's.
        weight_decay: Coupled weight decay; skips biases, BatchNormalization and times.
        label_smoothing: Weight of the uniform distribution in the target, in [0, 1).
        padding: Pixels of zero padding before the random crop; 0 for no crop.
        flip: Whether images are mirrored at random.
        alternating_flip: Whether an image that is mirrored in one epoch is not in the next: see
            `mf_zoo.data.Augmentation`. Without `flip` it means nothing.
        cutout: Side of the square cut out, in pixels; 0 for none.
        mixup: Parameter alpha of mixup's Beta distribution; 0 for none.
        cutmix: The same of CutMix. With both, each batch draws one of the two with probability 1/2.
        time_learning_rate_multiplier: Learning rate of the particles' times, as a multiple
            of the learning rate.
        mean_field_scaling: Whether particle gradients are multiplied by `n / T`.
        noise_temperature: Temperature of the Langevin noise on particles.
        quadrature: Name of the quadrature rule of the mean-field stages, a registered one: see
            `mf_zoo.layers`.
        horizon: Horizon `T` of every stage, `None` for its number of particles.
        initial_times: `"grid"` or `"random"`.
        reorder: Whether blocks are applied in the order of their times, and not in that of storage.
        integrator: Name of the integrator of the mean-field stages, a registered one: see
            `mf_zoo.layers`.
        shortcut: Shortcut of the entry blocks, `"projection"` or `"identity"`; `None` for the
            network's own, or that of the weights it starts from.
        dtype_policy: Keras dtype policy of the training; weights are float32 under all mixed
            ones, and the final test error is always measured in float32.
        ema_momentum: Momentum of an exponential moving average of the weights over the steps, in
            [0, 1); 0 for none. With it the average takes the place of the last step's weights at
            the end of the run, and the statistics of BatchNormalization are measured anew on the
            first 5,000 training images, augmented. Evaluations before are of the weights as they
            are.
        ladder: Networks that the model grows from within the schedule: names of architectures of
            its family, each with the epoch at which it ends, as in `"ResNet20:10,ResNet32:20"`.
            Those of a network with learned times have learned times. Empty for none.
        growth_rule: Rule by which `mf_zoo.depth.refine` grows a network: `"split"`, `"constant"`
            or `"linear"`.
        growth_noise: Noise on the kernels of stages that have grown, see there.
        growth_state: `"keep"`: the optimizer's momenta are refined like the weights; `"reset"`:
            they start at 0.

    Raises:
        ValueError: If a value is out of range or of the wrong type.

    Example:

    >>> from mf_zoo.training import RECIPES
    >>> RECIPES["paper"].replace(epochs=100).epochs
    100
    """

    name: str
    description: str = ""
    epochs: int = _value(200, "run", above=0)
    batch_size: int = _value(128, "batches", above=0)
    learning_rate: float = _value(0.1, "schedule", above=0)
    schedule: str = _value("step", "schedule", choices=("step", "cosine", "one_cycle"))
    warmup_epochs: float = _value(0.0, "schedule", least=0)
    momentum: float = _value(0.9, "optimizer", least=0, below=1)
    nesterov: bool = _value(False, "optimizer")
    weight_decay: float = _value(1e-4, "optimizer", least=0)
    label_smoothing: float = _value(0.0, "loss", least=0, below=1)
    padding: int = _value(4, "augmentation", least=0)
    flip: bool = _value(True, "augmentation")
    alternating_flip: bool = _value(False, "augmentation")
    cutout: int = _value(0, "augmentation", least=0)
    mixup: float = _value(0.0, "augmentation", least=0)
    cutmix: float = _value(0.0, "augmentation", least=0)
    time_learning_rate_multiplier: float = _value(1.0, "times", least=0)
    mean_field_scaling: bool = _value(False, "times")
    noise_temperature: float = _value(0.0, "times", least=0)
    quadrature: str = _value("backward", "stage")
    horizon: float | None = _value(None, "stage", above=0)
    initial_times: str = _value("grid", "stage", choices=("grid", "random"))
    reorder: bool = _value(True, "stage")
    integrator: str = _value("euler", "stage")
    shortcut: str | None = _value(None, "network", choices=SHORTCUTS)
    dtype_policy: str = _value(
        "float32", "run", choices=("float32", "mixed_bfloat16", "mixed_float16", "bfloat16")
    )
    ema_momentum: float = _value(0.0, "averaging", least=0, below=1)
    ladder: str = _value("", "growth")
    growth_rule: str = _value("split", "growth", choices=("split", "constant", "linear"))
    growth_noise: float = _value(0.0, "growth", least=0)
    growth_state: str = _value("keep", "growth", choices=("keep", "reset"))

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = _checked_type(field.name, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            _check_bounds(field, value)
        _require(
            "warmup_epochs",
            self.warmup_epochs,
            self.warmup_epochs < self.epochs,
            f"less than the {self.epochs} epochs",
        )
        # One ladder has one spelling: names of runs are made of it.
        object.__setattr__(self, "ladder", "".join(self.ladder.split()))
        ends = [0, *(epoch for _, epoch in self.rungs), self.epochs]
        _require(
            "ladder",
            self.ladder,
            all(first < second for first, second in itertools.pairwise(ends)),
            f"of networks that end one after another, before the {self.epochs} epochs do",
        )
        for name in ("quadrature", "integrator"):
            value = getattr(self, name)
            if value == type(self).__dataclass_fields__[name].default:
                continue  # The default needs no look into the registry, and no Keras.
            from mf_zoo.layers import integrators, quadrature

            known = {"quadrature": quadrature.rules, "integrator": integrators.names}[name]()
            _require(name, value, value in known, f"one of {', '.join(known)}")

    @property
    def soft_labels(self) -> bool:
        """Whether images are mixed and labels one-hot, for mixup or CutMix."""
        return self.mixup > 0 or self.cutmix > 0

    @property
    def rungs(self) -> tuple[tuple[str, int], ...]:
        """The networks of the ladder: the name of an architecture and the epoch at which it ends.

        Example:

        >>> mf_zoo.training.get_recipe("quick", ladder="ResNet20:10,ResNet32:20").rungs
        (('ResNet20', 10), ('ResNet32', 20))
        """
        found = [re.fullmatch(r"(\w+):(\d+)", text) for text in self.ladder.split(",")]
        _require(
            "ladder",
            self.ladder,
            all(found) or not self.ladder,
            'empty or a list such as "ResNet20:10,ResNet32:20"',
        )
        return tuple((match[1], int(match[2])) for match in found if match)

    def values(self, *parts: str) -> dict[str, Any]:
        """Returns the values that belong to some parts of a training, by name.

        Args:
            *parts: Names of parts, see `fields`.

        Example:

        >>> mf_zoo.training.RECIPES["paper"].values("optimizer")
        {'momentum': 0.9, 'nesterov': False, 'weight_decay': 0.0001}
        """
        return {name: getattr(self, name) for name in fields(*parts)}

    def replace(self, **values) -> "Recipe":
        """Returns the recipe with some values changed, all of them checked."""
        unknown = set(values) - set(_TYPES)
        if unknown:
            raise ValueError(_unknown_key(sorted(unknown)[0]))
        return dataclasses.replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """Returns all values as plain data, fit for JSON."""
        return dataclasses.asdict(self)


_TYPES = typing.get_type_hints(Recipe)


def fields(*parts: str) -> list[str]:
    """Names of the values of a recipe.

    Args:
        *parts: Only those that belong to these parts of a training: `"run"` (its length and
            precision), `"batches"`, `"schedule"` (of the learning rate), `"optimizer"` (of all
            weights), `"times"` (what the optimizer does to particles), `"stage"` (arguments of
            mean-field stages), `"network"` (further arguments of every builder), `"augmentation"`,
            `"loss"`, `"averaging"` (of weights), `"growth"` (in depth). Without any, all values but
            name and description.

    Returns:
        The names, in the order of `Recipe`.

    Example:

    >>> from mf_zoo.training.recipes import fields
    >>> fields("stage")
    ['quadrature', 'horizon', 'initial_times', 'reorder', 'integrator']
    """
    found = {f.name: f.metadata["part"] for f in dataclasses.fields(Recipe) if "part" in f.metadata}
    return [name for name, part in found.items() if not parts or part in parts]


def _check_bounds(field: dataclasses.Field, value: Any) -> None:
    """Checks a value against the bounds of its field."""
    bounds = field.metadata
    if value is None:
        return
    if isinstance(value, float):
        _require(field.name, value, math.isfinite(value), "a finite number")
    if isinstance(value, int):
        _require(field.name, value, value <= _LARGEST, f"at most {_LARGEST}")
    if choices := bounds.get("choices"):
        _require(field.name, value, value in choices, f"one of {', '.join(choices)}")
    if "below" in bounds:
        low, high = bounds["least"], bounds["below"]
        _require(field.name, value, low <= value < high, f"in [{low}, {high})")
    elif "least" in bounds:
        _require(field.name, value, value >= bounds["least"], f"{bounds['least']} or more")
    elif "above" in bounds:
        _require(field.name, value, value > bounds["above"], f"greater than {bounds['above']}")


def _require(name: str, value, condition: bool, what: str):
    if not condition:
        raise ValueError(f"Recipe value `{name}` must be {what}. Received: {name}={short(value)}")


def _unknown_key(key: str) -> str:
    close = difflib.get_close_matches(key, _TYPES, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"A recipe's values are {', '.join(_TYPES)}{hint}. Received: {short(key)}"


def _checked_type(name: str, value):
    """Returns `value` as the type of recipe field `name`; ints serve as floats."""
    hint = _TYPES[name]
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(t for t in typing.get_args(hint) if t is not type(None))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            value = float(value)
    if type(value) is not hint:
        raise ValueError(
            f"Recipe value `{name}` must be of type {hint.__name__}. "
            f"Received: {name}={short(value)}"
        )
    return value


def parse_override(text: str) -> tuple[str, Any]:
    """Reads one `key=value` of the command line; the value is a TOML literal or a bare word."""
    key, separator, value = (part.strip() for part in text.partition("="))
    if not separator or not key:
        raise ValueError(f"A recipe value is set by key=value. Received: {text!r}")
    if key not in _TYPES:
        raise ValueError(_unknown_key(key))
    if _TYPES[key] is str:
        return key, value.strip("\"'")
    if value.lower() in ("none", "null") and type(None) in typing.get_args(_TYPES[key]):
        return key, None
    if value.lower() in ("true", "false"):
        return key, value.lower() == "true"
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except RecursionError as error:
        raise ValueError(
            f"A recipe value must be a number or a word. Received: {key}={short(value)}"
        ) from error
    except ValueError:
        # Floats such as `1e-4.`, `.5` or `1.` are no TOML but plain enough.
        try:
            return key, float(value)
        except ValueError:
            return key, value


_QUICK = Recipe(
    name="quick",
    description="About 40 epochs: one cycle, label smoothing.",
    epochs=40,
    schedule="one_cycle",
    learning_rate=0.2,
    warmup_epochs=8.0,
    nesterov=True,
    weight_decay=5e-4,
    label_smoothing=0.05,
)

RECIPES: Mapping[str, Recipe] = types.MappingProxyType(
    {
        recipe.name: recipe
        for recipe in (
            Recipe(
                name="paper",
                description="He et al. 2016: SGD with momentum, steps at 1/2 and 3/4.",
            ),
            Recipe(
                name="cosine",
                description="The usual public recipe: Nesterov, cosine to 0, stronger decay.",
                schedule="cosine",
                nesterov=True,
                weight_decay=5e-4,
            ),
            _QUICK,
            # Chosen on held-out images by the campaign cifar10-settings.
            _QUICK.replace(
                name="short",
                description="`quick` with what held-out images chose: alternating flips.",
                alternating_flip=True,
            ),
            # CutMix on half of the batches with alpha 1 is its authors' training on CIFAR; mixup's
            # 0.2, the smoothing and the warm-up are those of He et al., *Bag of Tricks for Image
            # Classification*, 2019; the rest is that of "cosine". CutMix takes the place of cutout.
            Recipe(
                name="strong",
                description="Long and strongly augmented; values of the literature, not yet chosen "
                "on held-out images.",
                epochs=400,
                schedule="cosine",
                warmup_epochs=5.0,
                nesterov=True,
                weight_decay=5e-4,
                label_smoothing=0.1,
                mixup=0.2,
                cutmix=1.0,
            ),
        )
    }
)


def load_recipe(path: str | Path) -> Recipe:
    """Reads a recipe from a TOML file of its values.

    The key `base` may name a recipe of `RECIPES` whose values hold where the file is silent;
    `name` defaults to the file's stem.

    Args:
        path: The TOML file.

    Returns:
        The `Recipe`.

    Raises:
        ValueError: If the file is no TOML, or holds an unknown key or a bad value.
        OSError: If it cannot be read.
    """
    path = Path(path)
    values = read_toml(path)
    base = values.pop("base", None)
    if base is not None and base not in list(RECIPES):
        raise ValueError(f"`base` must be one of {', '.join(RECIPES)}. Received: base={base!r}")
    values.setdefault("name", path.stem)
    unknown = set(values) - set(_TYPES)
    if unknown:
        raise ValueError(_unknown_key(sorted(unknown)[0]))
    return Recipe(**values) if base is None else get_recipe(base).replace(**values)


def recipe_toml(recipe: Recipe, comment: str = "") -> str:
    """Writes a recipe as the TOML that `load_recipe` reads.

    Args:
        recipe: The recipe.
        comment: Lines to put above the values.

    Returns:
        The text. A value that is `None` is left out: TOML has no word for it, and it is the
        default.

    Example:

    >>> print(recipe_toml(RECIPES["paper"]).splitlines()[2])
    epochs = 200
    """
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    for key, value in recipe.to_dict().items():
        if value is not None:
            # Python's floats and JSON's strings, numbers and booleans are TOML's.
            text = repr(value) if isinstance(value, float) else json.dumps(value)
            lines.append(f"{key} = {text}")
    return "\n".join(lines) + "\n"


def stored_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe in a file, which may be older than some value: then its default.

    Raises:
        ValueError: If there is a value that a recipe does not have.
    """
    if unknown := sorted(set(values) - set(_TYPES)):
        raise ValueError(_unknown_key(unknown[0]))
    return {**Recipe(name="").to_dict(), **values}


def get_recipe(name: "str | Path | Recipe", /, **values) -> Recipe:
    """Finds a recipe by name or TOML file and changes some of its values.

    A change of `epochs` alone keeps the shape of the schedule: `warmup_epochs` and the epochs of
    the `ladder` are scaled along.

    Args:
        name: A name of `RECIPES`, the path of a `.toml` file, or a `Recipe`.
        **values: Values to change.

    Returns:
        The `Recipe`.

    Raises:
        ValueError: If there is no such recipe or value; the message lists the right ones.

    Example:

    >>> from mf_zoo.training import get_recipe
    >>> get_recipe("quick", epochs=20).warmup_epochs
    4.0
    """
    if isinstance(name, Recipe):
        recipe = name
    elif str(name) in RECIPES:
        recipe = RECIPES[str(name)]
    elif str(name).endswith(".toml"):
        try:
            recipe = load_recipe(name)
        except OSError as error:
            raise ValueError(
                f"A recipe file must be readable: {error.strerror}. Received: {name}"
            ) from error
    else:
        raise ValueError(
            f"`recipe` must be one of {', '.join(RECIPES)} or the path of a .toml file. "
            f"Received: {name!r}"
        )
    epochs = values.get("epochs")
    if isinstance(epochs, int) and 0 < epochs <= _LARGEST:
        scale = epochs / recipe.epochs
        ladder = [f"{network}:{round(epoch * scale)}" for network, epoch in recipe.rungs]
        scaled = {"warmup_epochs": recipe.warmup_epochs * epochs / recipe.epochs}
        values = {**scaled, "ladder": ",".join(ladder), **values}
    return recipe.replace(**values)
