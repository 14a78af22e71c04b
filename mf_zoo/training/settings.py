"""The settings of a run as one record, and what the machine is asked for as another."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mf_zoo.errors import short
from mf_zoo.training.recipes import RECIPES, Recipe, get_recipe, stored_values

LARGEST_SEED = 2**32 - 1  # that Keras, NumPy and Python take alike
_LARGEST = 2**63 - 1  # number of images that NumPy counts


def setting(
    default: Any,
    help: str,
    least: int | None = None,
    metavar: str | None = None,
    most: int | None = None,
) -> Any:
    """A field: its default, what the command's help says of it, its least and largest values."""
    metadata = {"help": help, "least": least, "metavar": metavar, "most": most}
    return dataclasses.field(default=default, metadata=metadata)


class Record:
    """What both records share: checks of their values, and plain data."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _checked(field, hints[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    def replace(self, **values: Any) -> Any:
        """Returns the record with some values changed, all of them checked."""
        return dataclasses.replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """Returns all values as plain data, fit for JSON."""
        found = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            value = value.to_dict() if isinstance(value, Recipe) else value
            found[field.name] = list(value) if isinstance(value, tuple) else value
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Any:
        """Reads the record from plain data that may hold more, and may be older than some value.

        Args:
            values: What `to_dict` returned, or the content of a run's `config.json`.

        Returns:
            The record. A value that is missing has its default.

        Raises:
            ValueError: If a value is wrong, or one that has no default is missing.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        try:
            return cls(**{name: values[name] for name in names if name in values})
        except TypeError as error:
            raise ValueError(
                f"The settings of a run must hold {', '.join(names)}. "
                f"Received: {short(dict(values))}"
            ) from error


@dataclasses.dataclass(frozen=True)
class RunSettings(Record):
    """All settings of a run that change its outcome, but for the backend.

    Campaigns, searches, the run folder's `config.json`, the check of a resumed run and the flags of
    `mf-zoo train` are made from these fields.

    Args:
        model: Name of a model, see `mf_zoo.applications.list_models()`.
        dataset: Name of a dataset, see `mf_zoo.data.names()`.
        seed: Of the initial weights and of the order and augmentation of the images.
        holdout: Number of training images, the last ones, that are not trained on. The run is
            evaluated on them instead of on the test images, to make choices.
        limit: Use only the first `limit` images of each split, to try things out.
        eval_every: Number of epochs between evaluations; the last epoch is always evaluated.
        weights: Registered weights to start from, such as `"cifar10"`, or a `.weights.h5` file.
            Where the recipe leaves quadrature and horizon at their defaults they are those of
            registered weights; for another number of classes the head starts afresh.
            A file may be of another depth of the same family: it is refined or coarsened.
        freeze: Layers that are not trained: names, or patterns as in a shell (`"stage*"`).
        recipe: A `Recipe`, a name of `RECIPES` or a `.toml` file.
        weights_sha256: Digest of the file in `weights`, which `train` fills in.
        until: End after so many epochs of the recipe's schedule, for other runs to grow from: a
            trunk. `None` for all of them.
        trunk: Folder of a run with `until` whose last checkpoint this one starts from, grown to
            the model; it trains the epochs that are left. All settings must be those of the trunk,
            but for model, `eval_every`, and what the recipe says of growth.
        trunk_sha256: The same of the trunk's checkpoint.

    Raises:
        ValueError: If a value is out of range or of the wrong type.

    Example:

    >>> from mf_zoo.training import RunSettings
    >>> settings = RunSettings("MFResNet20", recipe="quick", seed=1)
    >>> settings.recipe.epochs, settings.dataset
    (40, 'cifar10')
    """

    model: str
    dataset: str = setting("cifar10", "name of a dataset (default: cifar10)")
    seed: int = setting(0, "of weights, order and augmentation (default: 0)", 0, "N", LARGEST_SEED)
    holdout: int = setting(
        0,
        "evaluate on the last N training images, not trained on, instead of the test images",
        0,
        "N",
    )
    limit: int | None = setting(None, "use N images of each split", 1, "N")
    eval_every: int = setting(1, "evaluate every N epochs (default: 1)", 1, "N")
    weights: str | None = setting(
        None, "start from registered weights or a .weights.h5 file", metavar="W"
    )
    freeze: tuple[str, ...] = setting(
        (),
        "do not train the layers that match, such as 'stage*'; may be repeated",
        metavar="PATTERN",
    )
    recipe: Recipe = RECIPES["paper"]
    weights_sha256: str | None = None
    until: int | None = setting(
        None, "end after epoch N of the schedule, for other runs to grow from", 1, "N"
    )
    trunk: str | None = setting(
        None, "grow from the last checkpoint of a run that ended by --until", metavar="DIR"
    )
    trunk_sha256: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.recipe, Recipe):
            recipe = self.recipe
            if isinstance(recipe, Mapping):  # as `to_dict` wrote it, perhaps in an older version
                recipe = Recipe(**stored_values(recipe))
            object.__setattr__(self, "recipe", get_recipe(recipe))
        super().__post_init__()
        start = max((epoch for _, epoch in self.recipe.rungs), default=0)
        if self.until is not None and not start < self.until <= self.recipe.epochs:
            raise ValueError(
                f"`until` must be one of the epochs that the model trains, {start + 1} to "
                f"{self.recipe.epochs}. Received: until={self.until}"
            )
        if self.weights is not None and (self.trunk is not None or self.recipe.ladder):
            raise ValueError(
                "A run starts from `weights` or grows from a trunk or a ladder; the trunk may "
                f"start from weights. Received: weights={self.weights!r}"
            )

    @property
    def last_epoch(self) -> int:
        """The epoch of the recipe's schedule after which the run ends."""
        return self.until or self.recipe.epochs


@dataclasses.dataclass(frozen=True)
class Machine(Record):
    """What a run asks of the machine; the outcome is the same but for rounding.

    Args:
        threads: Limit for the threads of the backend (TensorFlow, PyTorch).
        on_device: On the JAX backend, keep the images on the device and run the steps of an epoch
            in one dispatch; the same batches and steps, and nothing to wait for in between.
        distribute: `"data"` divides each batch among all devices, of several processes too; see
            `mf_zoo.training.distribution`.

    Raises:
        ValueError: If a value is out of range or of the wrong type.

    Example:

    >>> from mf_zoo.training import Machine
    >>> Machine(threads=1).to_dict()
    {'threads': 1, 'on_device': False, 'distribute': None}
    """

    threads: int | None = setting(None, "limit the backend's threads", 1, "N")
    on_device: bool = setting(
        False, "keep the images on the device and run whole epochs in one dispatch (JAX)"
    )
    distribute: str | None = setting(
        None, "divide each batch among all devices, of several processes too: data"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distribute not in (None, "data"):
            raise ValueError(f"`distribute` must be 'data' or None. Received: {self.distribute!r}")
        if self.on_device and self.distribute:
            raise ValueError(
                "`on_device` keeps all images on one device and excludes `distribute`. "
                f"Received: distribute={self.distribute!r}"
            )


def flags(*records: type) -> dict[str, dataclasses.Field]:
    """The fields of records that are flags of the command, by name.

    Example:

    >>> from mf_zoo.training.settings import Machine, flags
    >>> list(flags(Machine))
    ['threads', 'on_device', 'distribute']
    """
    fields = (field for record in records for field in dataclasses.fields(record))
    return {field.name: field for field in fields if field.metadata}


def _checked(field: dataclasses.Field, hint: Any, value: Any) -> Any:
    """The value of a field, of the right type; ValueError if it is not."""
    name = field.name
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return None
    kind = next(kind for kind in kinds if kind is not type(None))
    if typing.get_origin(kind) is tuple:
        value = (value,) if isinstance(value, str) else value
        if not isinstance(value, (list, tuple)) or not all(isinstance(v, str) for v in value):
            raise ValueError(f"`{name}` must be a list of strings. Received: {name}={short(value)}")
        return tuple(value)
    if kind is int:
        least, most = field.metadata["least"], field.metadata["most"]
        if type(value) is not int or not least <= value <= (most or _LARGEST):
            upto = f" to {most or _LARGEST}" if most or (type(value) is int and value > 0) else ""
            raise ValueError(
                f"`{name}` must be a whole number from {least}{upto}. "
                f"Received: {name}={short(value)}"
            )
    elif kind is bool and not isinstance(value, bool):
        raise ValueError(f"`{name}` must be true or false. Received: {name}={short(value)}")
    elif kind is str:
        if isinstance(value, Path):
            return str(value)
        if not isinstance(value, str) or not value:
            raise ValueError(f"`{name}` must be a string. Received: {name}={short(value)}")
    return value
