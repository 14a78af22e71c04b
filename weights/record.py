"""The record of one registered weight file."""

import dataclasses
import datetime
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mf_zoo.chains import SHORTCUTS
from mf_zoo.weights.files import INDEX_SUFFIX, SUFFIX, shard_name

_PATTERNS = {
    "model": (r"[A-Za-z][A-Za-z0-9_]*", "the name of a model builder, such as 'MFResNet20'"),
    "dataset": (r"[a-z0-9_]+", "the name of a dataset, such as 'cifar10'"),
    # A name that ends like a shard's would make a file that may be another record's shard.
    "name": (
        r"(?!.*_\d{5}$)[a-z0-9][a-z0-9_-]*",
        "lower-case letters, digits, '-' and '_', without '_' and five digits at the end",
    ),
    "sha256": (r"[0-9a-f]{64}", "64 lower-case hexadecimal digits"),
}
_TEXTS = ("recipe", "quadrature", "device", "command", "backend", "integrator")
_NUMBERS = {
    "test_error": 100.0,
    "test_top5_error": 100.0,
    "test_coarse_error": 100.0,
    "train_seconds": math.inf,
}
_LEAST = {
    **{"size": 1, "parameters": 1, "classes": 1, "epochs": 1, "seed": 0},
    **{"image_passes": 1, "multiply_adds": 1},
}
DTYPES = ("float32", "float16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of several that hold the weights together; `WeightRecord` checks its values.

    Args:
        file: Name of the file, `"<stem of record>_00000.weights.h5"` for the first.
        sha256: Digest of the file, 64 hexadecimal digits.
        size: Size of the file in bytes.
    """

    file: str
    sha256: str
    size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rung:
    """A network that others grew from; `WeightRecord` checks its values.

    Args:
        model: Name of its builder.
        epochs: The epoch of the schedule at which it grew.
        sha256: Digest of its checkpoint, 64 hexadecimal digits.
    """

    model: str
    epochs: int
    sha256: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightRecord:
    """What a registered weight file is, how good it is, and how it was made.

    Every field is checked when a record is made, so a record read from a damaged or hand-edited
    file never gets further than its constructor.

    Args:
        model: Name of the builder in `mf_zoo.applications`, e.g. `"MFResNet20"`.
        dataset: Name of the dataset the model was trained on, e.g. `"cifar10"`.
        name: What a user passes as `weights=`; the dataset's name for a model's main weights.
        file: Name of the weight file, `"<model>-<name>.weights.h5"`, the model in lower case and
            with underscores where they help (`"mf_resnet20-cifar10.weights.h5"`); of weights in
            shards that of their index, which ends in `.weights.json`.
        sha256: Digest of that file, 64 hexadecimal digits.
        size: Size of that file in bytes.
        parameters: Number of weights in the model, trainable or not.
        classes: Number of classes of the model's head.
        test_error: Top-1 error in % on the dataset's whole test split, after the last epoch.
        epochs: Number of epochs trained.
        recipe: Name of the training recipe.
        seed: Seed of the run.
        quadrature: Quadrature rule of the mean-field stages it was trained with. With another
            one the same weights are another function.
        horizon: Horizon of the stages, `None` for each stage's number of particles.
        device: The processor or accelerator it was trained on.
        command: The command that trained it.
        date: Day the training ended, `"YYYY-MM-DD"`.
        backend: Keras backend of the training.
        versions: Version of each package that took part, by package name.
        train_seconds: Wall time of the training in seconds.
        test_top5_error: Top-5 error in % on the test split. Records may leave it out.
        test_coarse_error: Images in % whose predicted class is of another superclass than the
            right one, see `mf_zoo.data.superclasses`. Records may leave it out.
        reorder: Whether the stages apply blocks in the order of their times. Records may leave it
            out.
        integrator: Integrator of the stages it was trained with. Records may leave it out.
        shortcut: Shortcut of its entry blocks, `"projection"` or `"identity"`; `None` for the
            network's own. Records may leave it out.
        initial_weights: What the training started from: the name of registered weights, or name
            and digest of a file; `None` for random weights. Records may leave it out.
        freeze: Layers that were not trained, names or patterns. Records may leave it out.
        dtype: What the kernels are stored in, `"float32"` or `"float16"`; the network is the same,
            and `test_error` is that of the stored weights. Records may leave it out.
        shards: The files that hold the weights, in order, where there are several: a `Shard` or
            its fields for each. Records may leave it out.
        mean: Mean of each channel of the images that the network was trained to normalise by, in
            units of 0..255. `None`, which older records have, for CIFAR-10's.
        std: Standard deviations, likewise.
        grown_from: The networks of less depth that it grew from in the course of its epochs, in
            order: a `Rung` or its fields for each. `epochs` and `train_seconds` are theirs too.
            Records may leave it out.
        image_passes: Number of training images times epochs. Records may leave it out.
        multiply_adds: Multiply-adds of the whole training: three times those of the forward pass
            for each image. Records may leave it out.

    Raises:
        ValueError: A field has the wrong type or an impossible value.

    Example:

    >>> from mf_zoo import weights
    >>> [record.file for record in weights.records("MFResNet20", "cifar10")]
    ['mf_resnet20-cifar10.weights.h5']
    """

    model: str
    dataset: str
    name: str
    file: str
    sha256: str
    size: int
    parameters: int
    classes: int
    test_error: float
    epochs: int
    recipe: str
    seed: int
    quadrature: str
    horizon: float | None
    device: str
    command: str
    date: str
    backend: str
    versions: Mapping[str, str] = dataclasses.field(hash=False)
    train_seconds: float
    test_top5_error: float | None = None
    test_coarse_error: float | None = None
    reorder: bool = True
    integrator: str = "euler"
    shortcut: str | None = None
    initial_weights: str | None = None
    freeze: Sequence[str] = ()
    dtype: str = "float32"
    shards: Sequence[Shard | Mapping[str, Any]] = ()
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    grown_from: Sequence[Rung | Mapping[str, Any]] = ()
    image_passes: int | None = None
    multiply_adds: int | None = None

    def __post_init__(self) -> None:
        for field, (pattern, meaning) in _PATTERNS.items():
            value = getattr(self, field)
            if not isinstance(value, str) or not re.fullmatch(pattern, value):
                raise _wrong(field, meaning, value)
        for field in _TEXTS:
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                raise _wrong(field, "a text that is not empty", value)
        for field, least in _LEAST.items():
            value = getattr(self, field)
            if value is None and field in _OPTIONAL:
                continue
            if not _is_count(value, least):
                raise _wrong(field, f"an integer, at least {least}", value)
        for field, most in _NUMBERS.items():
            value = getattr(self, field)
            if value is None and field in _OPTIONAL:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise _wrong(field, "a number", value)
            if not (0.0 <= value <= most and _is_finite(value)):
                raise _wrong(field, f"a finite number from 0 to {most:g}", value)
        horizon = self.horizon
        if horizon is not None and (
            isinstance(horizon, bool)
            or not isinstance(horizon, int | float)
            or not (horizon > 0 and _is_finite(horizon))
        ):
            raise _wrong("horizon", "null or a number greater than 0", horizon)
        if self.shortcut not in (None, *SHORTCUTS):
            raise _wrong("shortcut", f"null or one of {SHORTCUTS}", self.shortcut)
        if self.dtype not in DTYPES:
            raise _wrong("dtype", " or ".join(map(repr, DTYPES)), self.dtype)
        stem = file_stem(self.model, self.name)
        if not isinstance(self.file, str) or not _spells(self.stem, stem):
            raise _wrong("file", repr(stem + SUFFIX), self.file)
        object.__setattr__(self, "shards", self._checked_shards())
        file = self.stem + (INDEX_SUFFIX if self.shards else SUFFIX)
        if self.file != file:
            raise _wrong("file", repr(file), self.file)
        self._check_normalization()
        object.__setattr__(self, "grown_from", self._checked_rungs())
        try:
            dated = datetime.date.fromisoformat(self.date).isoformat() == self.date
        except (TypeError, ValueError):
            dated = False
        if not dated:
            raise _wrong("date", "a day as 'YYYY-MM-DD'", self.date)
        if not isinstance(self.reorder, bool):
            raise _wrong("reorder", "true or false", self.reorder)
        if self.initial_weights is not None and (
            not isinstance(self.initial_weights, str) or not self.initial_weights.strip()
        ):
            raise _wrong("initial_weights", "null or a text", self.initial_weights)
        if not isinstance(self.freeze, list | tuple) or not all(
            isinstance(pattern, str) and pattern for pattern in self.freeze
        ):
            raise _wrong("freeze", "a list of names or patterns", self.freeze)
        object.__setattr__(self, "freeze", tuple(self.freeze))
        if not isinstance(self.versions, Mapping) or not all(
            isinstance(text, str) and text for item in self.versions.items() for text in item
        ):
            raise _wrong("versions", "an object of package names and versions", self.versions)

    def _checked_shards(self) -> tuple[Shard, ...]:
        expected = (
            f"a list of objects with the `file` {shard_name(self.stem, 0)!r} and so on, its "
            "`sha256` and its `size`"
        )
        try:
            shards = tuple(
                shard if isinstance(shard, Shard) else Shard(**shard) for shard in self.shards
            )
        except TypeError as error:
            raise _wrong("shards", expected, self.shards) from error
        for index, shard in enumerate(shards):
            if not (
                shard.file == shard_name(self.stem, index)
                and isinstance(shard.sha256, str)
                and re.fullmatch(_PATTERNS["sha256"][0], shard.sha256)
                and _is_count(shard.size, 1)
            ):
                raise _wrong("shards", expected, shard)
        return shards

    def _checked_rungs(self) -> tuple[Rung, ...]:
        expected = "a list of objects with `model`, `epochs`, which grow, and `sha256`"
        try:
            rungs = tuple(r if isinstance(r, Rung) else Rung(**r) for r in self.grown_from)
        except TypeError as error:
            raise _wrong("grown_from", expected, self.grown_from) from error
        least = 1
        for rung in rungs:
            if not (
                all(
                    isinstance(getattr(rung, field), str)
                    and re.fullmatch(_PATTERNS[field][0], getattr(rung, field))
                    for field in ("model", "sha256")
                )
                and _is_count(rung.epochs, least)
                and rung.epochs < self.epochs
            ):
                raise _wrong("grown_from", expected, rung)
            least = rung.epochs + 1
        return rungs

    def _check_normalization(self) -> None:
        for field in ("mean", "std"):
            value = getattr(self, field)
            if value is None:
                continue
            if (
                not isinstance(value, list | tuple)
                or not value
                or not all(
                    isinstance(part, int | float) and not isinstance(part, bool) for part in value
                )
                or not all(0.0 <= part <= 255.0 for part in value)
                or (field == "std" and min(value) == 0)
            ):
                raise _wrong(field, "null or a list of numbers in 0..255, a channel each", value)
            object.__setattr__(self, field, tuple(map(float, value)))
        if len(self.mean or ()) != len(self.std or ()):
            raise _wrong("std", "as many numbers as `mean`", self.std)

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """`mean` and `std`; `None` for those of CIFAR-10."""
        return None if self.mean is None else (self.mean, self.std)

    @property
    def files(self) -> "tuple[Shard | WeightRecord, ...]":
        """All files of the weights by `file`, `sha256` and `size`: shards, then the record's."""
        return (*self.shards, self)

    @property
    def total_size(self) -> int:
        """Size of all files of the weights in bytes."""
        return sum(part.size for part in self.files)

    @property
    def stem(self) -> str:
        """What the names of this record's files begin with, e.g. `"mf_resnet20-cifar10"`."""
        return self.file.removesuffix(INDEX_SUFFIX).removesuffix(SUFFIX)

    @property
    def test_accuracy(self) -> float:
        """Top-1 accuracy in % on the test split."""
        return 100.0 - self.test_error

    def to_json(self) -> str:
        """The record as the text of its JSON file."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "WeightRecord":
        """Reads a record from the text of its JSON file.

        Args:
            text: One JSON object with the fields of a record, and no others.

        Returns:
            The record.

        Raises:
            ValueError: The text is no JSON object, a field is missing, unknown or wrong.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:  # also of numbers of thousands of digits
            raise ValueError(f"A weight record must be valid JSON. Received: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(
                f"A weight record must be one JSON object. Received: {type(values).__name__}"
            )
        fields = {field.name for field in dataclasses.fields(cls)}
        needed = fields - _OPTIONAL
        if missing := sorted(needed - values.keys()):
            raise ValueError(
                f"A weight record needs the fields {sorted(needed)}. "
                f"Received: one without {missing}"
            )
        if unknown := sorted(values.keys() - fields):
            raise ValueError(
                f"A weight record has the fields {sorted(fields)} only. Received: also {unknown}"
            )
        return cls(**values)

    @classmethod
    def read(cls, path: str | Path) -> "WeightRecord":
        """Reads a record file and checks that it lies under its own name.

        Args:
            path: The `.json` file.

        Returns:
            The record.

        Raises:
            ValueError: As `from_json`, naming the file; or the file's name is not the record's.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError) as error:
            raise ValueError(
                f"A weight record must be readable UTF-8: {error}. Received: {path}"
            ) from error
        try:
            record = cls.from_json(text)
        except ValueError as error:
            raise ValueError(f"Weight record {path}: {error}") from error
        if path.name != f"{record.stem}.json":
            raise ValueError(
                f"The weight record of {record.model!r}, {record.name!r} must lie in a file "
                f"'{record.stem}.json'. Received: {path}"
            )
        return record


# Fields that records may leave out: those with a default.
_OPTIONAL = {
    field.name
    for field in dataclasses.fields(WeightRecord)
    if field.default is not dataclasses.MISSING
}


def file_stem(model: str, name: str) -> str:
    """What the names of the files of a model's weights begin with.

    Args:
        model: Name of the model.
        name: Name of the weights.

    Returns:
        The model's name in lower case, capitals set apart from the word that follows them, and
        the name of the weights.

    Example:

    >>> mf_zoo.weights.record.file_stem("MFResNet20", "cifar10")
    'mf_resnet20-cifar10'
    """
    return f"{re.sub('(?<=[A-Z])(?=[A-Z][a-z])', '_', model).lower()}-{name}"


def _spells(stem: str, expected: str) -> bool:
    """Whether two beginnings of names are of the same letters, underscores in the model aside."""
    model, _, name = stem.partition("-")
    expected_model, _, expected_name = expected.partition("-")
    return name == expected_name and model.replace("_", "") == expected_model.replace("_", "")


def _is_finite(value: float) -> bool:
    """Whether a number is finite as a float: a whole one may have hundreds of digits."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _wrong(field: str, expected: str, value: object) -> ValueError:
    return ValueError(f"`{field}` must be {expected}. Received: {field}={value!r}")
