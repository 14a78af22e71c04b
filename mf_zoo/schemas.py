"""What must be in the files that mf_zoo writes and reads again: one schema for each kind.

Files of other versions may hold more, and those of older ones less, where a schema says so. The
checks are pydantic's, in strict mode: no text serves as a number, no true as a 1. Settings, recipes
and weight records check themselves; they are asked here. Imported when the first file is read.
"""

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Required

import pydantic
from typing_extensions import TypedDict

from mf_zoo.errors import UserError, one_line, short

# Types of values.

Text = Annotated[str, pydantic.Field(min_length=1)]
Count = Annotated[int, pydantic.Field(ge=0, lt=2**63)]
Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Amount = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
# Work, which may be beyond 64 bits; as a float it is finite.
Work = Annotated[int, pydantic.Field(ge=0, lt=10**30)]
Digest = Annotated[str, pydantic.Field(pattern="^[0-9a-f]{64}$")]


def _file_name(value: str) -> str:
    if not value or Path(value).name != value or "\0" in value:
        raise ValueError("the name of a file in its folder")
    return value


def _day(value: str) -> str:
    if not re.match(r"\d{4}-\d\d-\d\d", value):
        raise ValueError("a date that begins as YYYY-MM-DD")
    return value


def _numbers(value: Any) -> Any:
    for part in value if isinstance(value, list) else ():
        _numbers(part)
    if not isinstance(value, int | float | list) or (isinstance(value, int) and value >= 2**64):
        raise ValueError("a list of numbers of 64 bits")
    return value


def _normalization(value: list[list[float]]) -> list[list[float]]:
    if len(value) != 2 or len(value[0]) != len(value[1]) or not all(part > 0 for part in value[1]):
        raise ValueError("the mean of each channel, and its standard deviation, above 0")
    return value


FileName = Annotated[str, pydantic.AfterValidator(_file_name)]
Date = Annotated[str, pydantic.AfterValidator(_day)]
Numbers = Annotated[list[Any], pydantic.AfterValidator(_numbers)]
Normalization = Annotated[list[list[Finite]], pydantic.AfterValidator(_normalization)]

# JSON files of a run.


class FormerState(TypedDict, total=False):
    """A checkpoint."""

    epoch: Required[Count]
    checkpoint: Required[FileName]
    sha256: Required[Digest]
    random_states: Numbers
    date: Date


class State(FormerState, total=False):
    """`state.json`: the checkpoint that counts, and the one before."""

    before: FormerState | None


class Rung(TypedDict):
    """A run that another one has grown from."""

    model: Text
    epochs: Count
    sha256: Digest
    image_passes: Work | None
    multiply_adds: Work | None
    train_seconds: Amount
    weights: Text | None
    weights_sha256: Digest | None


Versions = dict[str, str]


class Config(TypedDict, total=False):
    """`config.json`: beside the settings, which check themselves, what was found."""

    recipe: Required[dict[str, Any]]  # and no name of a file to be read
    train_images: Count
    evaluated_on: Text
    evaluation_images: Count
    steps_per_epoch: Count
    normalization: Normalization | None
    grown_from: list[Rung]
    backend: Text
    versions: Versions
    device: str
    processes: Count
    devices: Count
    data_dir: str | None
    command: str
    date: Date


class Result(TypedDict, total=False):
    """`result.json` of a run."""

    model: Required[Text]
    dataset: Required[Text]
    evaluated_on: Required[Text]
    test_error: Required[Amount]
    test_top5_error: Amount | None
    test_coarse_error: Amount | None
    # Not a number, or infinite, is what a network may be measured to have.
    test_loss: float
    test_ece: float
    train_loss: float
    train_error: float
    epochs: Required[Count]
    recipe: Required[Text]
    seed: Required[Count]
    parameters: Required[Count]
    order_swaps: Count
    train_seconds: Required[Amount]
    images_per_second: Amount | None
    total_train_seconds: Amount
    image_passes: Work | None
    multiply_adds: Work | None
    grown_from: list[Rung]
    backend: str
    device: str
    command: str
    date: Required[Date]
    file: Required[FileName]
    size: Required[Count]
    sha256: Required[Digest]


class _Settings(TypedDict, total=False):
    recipe: Required[dict[str, Any]]  # and no name of a file to be read


class SettingsFile(TypedDict):
    """What a campaign tells a run: `mf-zoo train --settings`."""

    settings: _Settings
    machine: dict[str, Any]
    command: str


# JSON files of a search; those of keras-tuner as far as it trusts them.


class Search(TypedDict, total=False):
    """`search.json`: beside the settings, which check themselves, what was found."""

    recipe: Required[dict[str, Any]]  # and no name of a file to be read
    normalization: Normalization | None
    search: list[str] | None  # as on the command line
    worker_timeout: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
    data_dir: str | None
    backend: Required[Text]
    versions: Versions
    device: str
    command: Required[str]
    date: Date


class _Space(TypedDict):
    """A hyperparameter, by a class of keras-tuner's."""

    class_name: Literal["Boolean", "Choice", "Fixed", "Float", "Int"]
    config: dict[str, Any]


class _HyperParameters(TypedDict):
    space: list[_Space]
    values: dict[str, str | bool | Annotated[int, pydantic.Field(lt=2**63)] | Finite | None]


class Oracle(TypedDict, total=False):
    """`keras_tuner/oracle.json`."""

    ongoing_trials: Required[dict[str, str]]
    hyperparameters: Required[_HyperParameters]
    start_order: Required[list[str]]
    end_order: Required[list[str]]
    run_times: Required[dict[str, Count]]
    retry_queue: Required[list[str]]
    seed: Required[Count]
    seed_state: Required[Count]
    tried_so_far: Required[list[str]]
    id_to_hash: Required[dict[str, str | None]]


class _Observation(TypedDict):
    value: Annotated[list[float], pydantic.Field(min_length=1)]
    step: Count


class _Metric(TypedDict):
    direction: Literal["min", "max"] | None
    observations: list[_Observation]


class _Metrics(TypedDict):
    metrics: dict[str, _Metric]


class Trial(TypedDict):
    """`keras_tuner/trial_*/trial.json`."""

    trial_id: Text
    hyperparameters: _HyperParameters
    metrics: _Metrics
    score: float | None
    best_step: Count | None
    status: Literal["RUNNING", "IDLE", "INVALID", "STOPPED", "COMPLETED", "FAILED"]
    message: str | None


class Record(TypedDict, total=False):
    """What stands beside a history of times, of a record of weights (which checks itself)."""

    quadrature: Text | None
    horizon: Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)] | None


class Recipe(TypedDict, total=False):
    """The same in the `config.json` of a run, for those who only draw."""

    recipe: Record


def _run(values: Mapping[str, Any]) -> dict[str, Any]:
    from mf_zoo.training.settings import Machine, RunSettings

    return {**RunSettings.from_dict(values).to_dict(), **Machine.from_dict(values).to_dict()}


def _settings_file(values: Mapping[str, Any]) -> dict[str, Any]:
    from mf_zoo.training.settings import Machine, RunSettings

    return {
        "settings": RunSettings.from_dict(values["settings"]).to_dict(),
        "machine": Machine.from_dict(values["machine"]).to_dict(),
    }


def _search(values: Mapping[str, Any]) -> dict[str, Any]:
    from mf_zoo.tuning.settings import SearchSettings

    return SearchSettings.from_dict(values).to_dict()


# Of each kind of JSON file its type, and what checks the settings in it and returns them with
# those that the file leaves out.
JSON: Mapping[str, tuple[Any, Any]] = {
    "state": (State, None),
    "config": (Config, _run),
    "result": (Result, None),
    "settings": (SettingsFile, _settings_file),
    "search": (Search, _search),
    "oracle": (Oracle, None),
    "trial": (Trial, None),
    "record": (Record, None),
    "recipe": (Recipe, None),
    # Records of the theory's pictures, by picture; they are read to be kept.
    "figures": (dict[str, dict[str, Any]], None),
}

# Columns of CSV files, whose values stay texts.


def _column(pattern: str | None, expected: str, read: Any = None, finite: bool = False) -> Any:
    """A text that a whole pattern matches, and that `read` takes; of a number, a finite one."""

    def check(text: str) -> str:
        right = pattern is None or re.fullmatch(pattern, text, re.ASCII)
        if right and read is not None:
            try:
                right = not finite or math.isfinite(read(text))
            except ValueError:
                right = False
        if not right:
            raise ValueError(expected)
        return text

    return Annotated[str, pydantic.AfterValidator(check)]


_FLOAT = r"-?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?"
Whole = _column(r"\d{1,18}", "a whole number from 0")
Decimal = _column(f"(?i:{_FLOAT})", "a finite number", float, finite=True)
Measure = _column(f"(?i:{_FLOAT}|-?inf|nan)", "a number")
MaybeMeasure = _column(f"(?i:{_FLOAT}|-?inf|nan)?", "a number or empty")
MaybeDecimal = _column(f"(?i:{_FLOAT})?", "a finite number or empty", lambda t: float(t or 0), True)
MaybeWhole = _column(r"(\d{1,30})?", "a whole number from 0, or empty")
Word = _column(r"(?s).+", "a text that is not empty")
Anything = _column(None, "a text")
# Epochs and particles are counted out in memory.
Epoch = _column(r"\d{1,7}", "a whole number from 0 to 9999999")
RunState = _column("finished|failed|waiting|begun", "finished, failed, waiting or begun")

HISTORY: Mapping[str, Any] = {
    "epoch": Epoch,
    "learning_rate": Measure,
    "loss": Measure,
    "accuracy": Measure,
    "test_loss": MaybeMeasure,
    "test_error": MaybeDecimal,
    "seconds": Decimal,
    "images_per_second": Decimal,
    "order_swaps": Whole,
}
_PARTICLE = {"epoch": Epoch, "stage": Word, "particle": Epoch, "time": Measure, "rank": Whole}
TIMES: Mapping[str, Any] = _PARTICLE
RECORDED: Mapping[str, Any] = {**_PARTICLE, "step": Measure, "swaps": Whole}
RUNS: Mapping[str, Any] = {
    "run": Word,
    "state": RunState,
    "model": Word,
    "dataset": Word,
    "recipe": Word,
    "overrides": Anything,
    "seed": Whole,
    "evaluated_on": Anything,
    "epochs": Epoch,
    "epochs_done": Epoch,
    "test_error": MaybeDecimal,
    "test_top5_error": MaybeDecimal,
    "test_coarse_error": MaybeDecimal,
    "test_loss": MaybeMeasure,
    "train_error": MaybeMeasure,
    "train_loss": MaybeMeasure,
    "order_swaps": Whole,
    "parameters": MaybeWhole,
    "train_images": MaybeWhole,
    "batch_size": MaybeWhole,
    "seconds": MaybeDecimal,
    "images_per_second": MaybeDecimal,
    "backend": Anything,
    "device": Anything,
    "versions": Anything,
    "date": Anything,
    "sha256": Anything,
    # Of the run and of all that it grew from; files of earlier versions end before them.
    "image_passes": MaybeWhole,
    "multiply_adds": MaybeWhole,
}
_BEFORE_GROWTH = list(RUNS).index("image_passes")
# A history of times that somebody else may have written, with columns of his own.
_SHARED: Mapping[str, Any] = {
    "epoch": Epoch,
    "particle": Epoch,
    **dict.fromkeys(("time", "rank", "step"), MaybeMeasure),
    "order_swaps": Whole,
    "test_error": MaybeDecimal,
}

# Of each kind of CSV file the columns that it must have, and no others; `None` for any.
TABLES: Mapping[str, Mapping[str, Any] | None] = {
    "history": HISTORY,
    "times": TIMES,
    "recorded": RECORDED,
    "runs": RUNS,
    "shared": None,
}


def check_object(kind: str, found: Any, path: Path) -> dict[str, Any]:
    """Checks the content of a JSON file.

    Args:
        kind: A name of `JSON`.
        found: What the file holds.
        path: The file, for messages.

    Returns:
        The content, with the default of each setting that the file leaves out.

    Raises:
        UserError: If it is not what it must be.
    """
    shape, settings = JSON[kind]
    _check(_adapter(shape), found, lambda place: f"{_named(place)} in {path}" if place else path)
    try:
        return found if settings is None else {**found, **settings(found)}
    except ValueError as error:
        text = f"{path} must hold settings of this version: {one_line(error)}"
        raise UserError(text) from error


def check_rows(
    kind: str | None, header: Sequence[str], rows: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Checks the content of a CSV file.

    Args:
        kind: A name of `TABLES`; `None` for any columns, with any values.
        header: The names of its columns.
        rows: What `csv.DictReader` has read.
        path: The file, for messages.

    Raises:
        UserError: If it is not what it must be.
    """
    if len(set(header)) < len(header):
        raise UserError(f"Columns of {path} must have different names. Received: {short(header)}")
    for number, row in enumerate(rows, 2):
        # A short line lacks values, a long one has some under no name.
        if None in row or None in row.values():
            values = [value for value in row.values() if value is not None]
            raise UserError(
                f"Line {number} of {path} must have {len(header)} values. Received: {short(values)}"
            )
    if kind is None or not header:
        return
    columns = TABLES[kind]
    if columns is None:
        _known(header, "epoch", path)
        columns = {
            name: MaybeMeasure if "/" in name else _SHARED.get(name, Anything) for name in header
        }
    elif kind == "runs" and len(header) < len(columns):
        columns = dict(list(columns.items())[: max(len(header), _BEFORE_GROWTH)])
    if list(header) != list(columns):
        raise UserError(
            f"{path} must have the columns {', '.join(columns)}. Received: {short(list(header))}"
        )
    _check(
        _table(tuple(columns.items())),
        rows,
        lambda place: f"{_named(place[1:])} in line {place[0] + 2} of {path}",
    )
    if kind == "runs":
        for row in rows:
            _check_finished(row, path)


def _check_finished(row: Mapping[str, str], path: Path) -> None:
    """Of a finished run a line of `runs.csv` says how it ended."""
    if row["state"] != "finished":
        return
    if row["epochs"] != row["epochs_done"]:
        raise UserError(
            f"A finished run must have all its epochs. Received: {row['run']} in {path} with "
            f"{row['epochs_done']} of {row['epochs']}"
        )
    for column in ("test_error", "train_images", "evaluated_on"):
        if not row[column]:
            raise UserError(
                f"`{column}` of a finished run in {path} must be there. Received: {row['run']}"
            )


def _known(header: Sequence[str], column: str, path: Path) -> None:
    if column not in header:
        raise UserError(f"{path} must have a column {column!r}. Received: {short(list(header))}")


@functools.cache
def _adapter(shape: Any) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(shape)


@functools.lru_cache(maxsize=64)
def _table(columns: tuple[tuple[str, Any], ...]) -> pydantic.TypeAdapter:
    row = TypedDict("row", dict(columns))  # noqa: UP013  # the columns are data
    return pydantic.TypeAdapter(Annotated[list[row], pydantic.FailFast()])


def _named(place: Sequence[Any]) -> str:
    """`a.0.b` in backticks, of the way to a value."""
    text = ".".join(map(str, place))
    return f"`{text if len(text) <= 60 else text[:57] + '...'}`"


def _check(adapter: pydantic.TypeAdapter, found: Any, named: Any) -> None:
    try:
        adapter.validate_python(found, strict=True)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "missing":
            expected = "must be there"
        elif first["type"] == "value_error":
            expected = f"must be {first['ctx']['error']}"
        else:  # "Input should be a valid integer", "List should have at least ..."
            expected = re.sub("^.*? should ", "must ", first["msg"])
        raise UserError(
            f"{named(first['loc'])} {expected}. Received: {short(first['input'])}"
        ) from None
    except RecursionError:
        raise UserError(f"{named(())} must not be nested so deep. Received: {short(found)}") from (
            None
        )
