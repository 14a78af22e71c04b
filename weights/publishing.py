"""Taking the weights of a finished training run into the registry."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mf_zoo.weights.files import check_file, verify
from mf_zoo.weights.record import WeightRecord
from mf_zoo.weights.registry import FOLDER, LARGE, LARGEST_IN_WHEEL


def publish(
    run_dir: str | Path,
    name: str | None = None,
    directory: str | Path | None = None,
    *,
    overwrite: bool = False,
    partial: bool = False,
) -> WeightRecord:
    """Registers the last epoch's weights of a finished run of `mf-zoo train`.

    Writes the weight file, the run's histories and, last of all, the record, each beside its
    place and then renamed: whenever it is killed, the registry holds no record without its file.
    A weight file of more than 10 MB goes to the folder `large` of the registry, which is no part
    of the wheel: put it at the base URL that users download from (`mf_zoo.weights.path`).

    Args:
        run_dir: The run folder.
        name: Name of the weights, what a user passes as `weights=`; the dataset's if `None`.
        directory: Folder of the registry; the one inside the package if `None`.
        overwrite: Whether weights registered under this name are replaced.
        partial: Whether a run that used part of the images only (`limit`, `holdout`) is taken.
            For trying things out: its error is not that of the whole test split, so it needs a
            `directory` of its own.

    Returns:
        The new record.

    Raises:
        ValueError: The run is unfinished, its files do not belong together, or it used part of
            the images only.
        FileExistsError: The name is taken.
        WeightFileError: The run's weight file is damaged.
    """
    run = Path(run_dir)
    folder = FOLDER if directory is None else Path(directory)
    config, result = _read(run, "config.json"), _read(run, "result.json")
    if config["limit"] is not None or config["holdout"] or result["evaluated_on"] != "test":
        received = (
            f"limit={config['limit']}, holdout={config['holdout']}, "
            f"evaluated_on={result['evaluated_on']!r}"
        )
        if not partial:
            raise ValueError(
                f"A run to be published must train on the whole training set and be evaluated on "
                f"the whole test set. Received: {run} with {received}"
            )
        if folder.resolve() == FOLDER:
            raise ValueError(
                f"A run on part of the images must go to a `directory` of its own, never into "
                f"the package. Received: {run} with {received}"
            )
    if (epochs := _epochs(run / "history.csv")) != list(range(1, result["epochs"] + 1)):
        raise ValueError(
            f"The history of a finished run must have a row for each of its {result['epochs']} "
            f"epochs. Received: {run / 'history.csv'} with the epochs {epochs}"
        )
    source = check_file(verify(run / result["file"], result["sha256"], result["size"]))
    record = _record(name or result["dataset"], config, result)

    target = folder / f"{record.stem}.json"
    file, other = folder / record.file, folder / LARGE / record.file
    if record.size > LARGEST_IN_WHEEL:
        file, other = other, file
    if not overwrite and any(path.exists() for path in (target, file, other)):
        raise FileExistsError(
            f"Registered weights must not change under their name: choose another name, or pass "
            f"overwrite=True. Received: {target}"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    _place(file, lambda part: shutil.copyfile(source, part))
    verify(file, record.sha256, record.size)
    other.unlink(missing_ok=True)
    for kind in ("history", "times"):
        history, copy = run / f"{kind}.csv", folder / f"{record.stem}.{kind}.csv"
        if history.exists():
            _place(copy, lambda part, history=history: shutil.copyfile(history, part))
        else:
            copy.unlink(missing_ok=True)
    _place(target, lambda part: part.write_text(record.to_json(), encoding="utf-8"))
    return record


def _read(run: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((run / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(
            f"Only the folder of a finished run of `mf-zoo train` can be published: it has a "
            f"config.json and a result.json. Received: {run} without {name}"
        ) from error
    except ValueError as error:
        raise ValueError(f"A run's {name} must be JSON. Received: {run / name}: {error}") from error


def _epochs(path: Path) -> list[int]:
    with path.open(newline="", encoding="utf-8") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def _record(name: str, config: dict[str, Any], result: dict[str, Any]) -> WeightRecord:
    from mf_zoo import data

    start = config.get("weights")
    if start is not None and config["weights_sha256"]:
        start = f"{Path(start).name} sha256:{config['weights_sha256']}"
    return WeightRecord(
        name=name,
        file=f"{WeightRecord.stem_of(result['model'], name)}.weights.h5",
        classes=len(data.class_names(result["dataset"])),
        quadrature=config["recipe"]["quadrature"],
        horizon=config["recipe"]["horizon"],
        date=result["date"][: len("YYYY-MM-DD")],
        versions=config["versions"],
        reorder=config["recipe"].get("reorder", True),
        initial_weights=start,
        freeze=config.get("freeze", ()),
        **{
            field: result.get(field)
            for field in (
                "model",
                "dataset",
                "sha256",
                "size",
                "parameters",
                "test_error",
                "test_top5_error",
                "test_coarse_error",
                "epochs",
                "recipe",
                "seed",
                "device",
                "command",
                "backend",
                "train_seconds",
            )
        },
    )


def _place(target: Path, write: Callable[[Path], object]) -> None:
    part = target.with_name(f"{target.name}.partial")
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
