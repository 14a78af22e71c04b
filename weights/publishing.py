"""Taking the weights of a finished training run into the registry."""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mf_zoo.files import read_json, read_rows, sha256, write_atomically, writing
from mf_zoo.weights.files import (
    INDEX_SUFFIX,
    SUFFIX,
    check_file,
    parts,
    shard_name,
    verify,
)
from mf_zoo.weights.record import DTYPES, Shard, WeightRecord, file_stem
from mf_zoo.weights.registry import FOLDER, LARGE, LARGEST_IN_WHEEL
from mf_zoo.weights.rewriting import rewrite

# A file of a repository that stays clonable; GitHub takes 100 MiB at most.
MAX_SHARD_SIZE = 90_000_000  # bytes
# By so much may the test error change in half precision: 2 of 10,000 images.
TOLERANCE = 0.02  # points


def publish(
    run_dir: str | Path,
    name: str | None = None,
    directory: str | Path | None = None,
    *,
    overwrite: bool = False,
    partial: bool = False,
    dtype: str = "float32",
    evaluate: Callable[[Path], Any] | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> WeightRecord:
    """Registers the last epoch's weights of a finished run of `mf-zoo train`.

    Writes the weight file, the run's histories and, last of all, the record, each beside its
    place and then renamed: whenever it is killed, the registry holds no record without its file.
    Weights of more than 10 MB go to the folder `large` of the registry, which is no part of the
    wheel: put them at the base URL that users download from (`mf_zoo.weights.path`).

    In half precision the kernels take half the room: arrays of three or more dimensions, while
    vectors, statistics, times and the classifier stay float32. It is for weights whose test error
    stays the same to 0.02 points; the error of the rounded network is what the record has then.

    Args:
        run_dir: The run folder.
        name: Name of the weights, what a user passes as `weights=`; the dataset's if `None`.
        directory: Folder of the registry; the one inside the package if `None`.
        overwrite: Whether weights registered under this name are replaced.
        partial: Whether a run that used part of the images only (`limit`, `holdout`) is taken.
            For trying things out: its error is not that of the whole test split, so it needs a
            `directory` of its own.
        dtype: What kernels are stored in, `"float32"` or `"float16"`. Loaded variables have the
            dtype of the model either way.
        evaluate: Needed for `"float16"`: returns the `mf_zoo.training.Evaluation` of the run's
            network with the weights of a file (`mf_zoo.training.evaluate_weights`).
        max_shard_size: Size in bytes that no file exceeds. A larger one is stored as several
            shards (`*_00000.weights.h5` and so on) and their index (`*.weights.json`) in Keras's
            format.

    Returns:
        The new record.

    Raises:
        ValueError: The run is unfinished, its files do not belong together, it used part of the
            images only, the test error is another in half precision, or an array is larger than
            a shard may be.
        FileExistsError: The name is taken.
        UserError: A file of the run is not readable JSON.
        WeightFileError: The run's weight file is damaged, or holds weights that half precision
            cannot.

    Example:

    ```python
    def evaluate(file):
        return mf_zoo.training.evaluate_weights("runs/a", file, data_dir="D")

    mf_zoo.weights.publish("runs/a", dtype="float16", evaluate=evaluate)
    ```
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {DTYPES}. Received: dtype={dtype!r}")
    if dtype != "float32" and evaluate is None:
        raise ValueError(
            "Weights are stored in half precision only if the test error stays the same: "
            f"`evaluate` must measure it. Received: dtype={dtype!r}, evaluate=None"
        )
    if not isinstance(max_shard_size, int) or max_shard_size < 1:
        raise ValueError(
            f"`max_shard_size` must be a whole number of bytes. "
            f"Received: max_shard_size={max_shard_size!r}"
        )
    run = Path(run_dir)
    folder = FOLDER if directory is None else Path(directory)
    config, result = _read(run, "config"), _read(run, "result")
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
    history = run / "history.csv"
    epochs = [int(row["epoch"]) for row in read_rows(history, "history")]
    if epochs != list(range(1, result["epochs"] + 1)):
        raise ValueError(
            f"The history of a finished run must have a row for each of its {result['epochs']} "
            f"epochs. Received: {history} with the epochs {epochs}"
        )
    source = check_file(verify(run / result["file"], result["sha256"], result["size"]))
    record = _record(name or result["dataset"], config, result)

    target = folder / f"{record.stem}.json"
    if not overwrite and (target.exists() or _stored(folder, record.stem)):
        raise FileExistsError(
            f"Registered weights must not change under their name: choose another `name`, or pass "
            f"`overwrite=True`. Received: {target}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        if dtype != "float32" or record.size > max_shard_size:
            with writing(Path(scratch)):
                source = rewrite(
                    source, Path(scratch), record.stem, dtype=dtype, max_shard_size=max_shard_size
                )
            record = _with_files(record, source)
        if dtype != "float32":
            scores = evaluate(source)
            error, top5, coarse = (
                None if value is None else round(value, 6)
                for value in (scores.error, scores.top5_error, scores.coarse_error)
            )
            # A little more, for both are rounded; and not a number is no error.
            if not abs(error - record.test_error) <= TOLERANCE + 2e-6:
                raise ValueError(
                    f"In half precision the test error must stay the same to {TOLERANCE} points: "
                    f"publish {run} in float32. Received: {error} % instead of "
                    f"{record.test_error} %"
                )
            record = dataclasses.replace(
                record,
                dtype=dtype,
                test_error=error,
                test_top5_error=top5,
                test_coarse_error=coarse,
            )
        home = folder / LARGE if record.total_size > LARGEST_IN_WHEEL else folder
        with writing(home):
            home.mkdir(parents=True, exist_ok=True)
        placed = [home / part.file for part in record.files]
        for origin, file, part in zip(parts(source), placed, record.files, strict=True):
            write_atomically(file, lambda beside, origin=origin: shutil.copyfile(origin, beside))
            verify(file, part.sha256, part.size)
    superseded = set(_stored(folder, record.stem)) - set(placed)
    for kind in ("history.csv", "times.csv"):
        history, copy = run / kind, folder / f"{record.stem}.{kind}"
        if history.exists():
            write_atomically(copy, lambda beside, history=history: shutil.copyfile(history, beside))
        else:
            with writing(copy):
                copy.unlink(missing_ok=True)
    write_atomically(target, lambda beside: beside.write_text(record.to_json(), encoding="utf-8"))
    # Last: a kill before leaves files too many, and no record without its own.
    for file in superseded:
        with writing(file):
            file.unlink()
    return record


def _stored(folder: Path, stem: str) -> list[Path]:
    """The weight files of that name in a registry."""
    names = (f"{stem}{SUFFIX}", f"{stem}{INDEX_SUFFIX}")
    shards = shard_name(stem, 0).replace("00000", "[0-9]" * 5)
    return [
        file
        for home in (folder, folder / LARGE)
        for name in (*names, shards)
        for file in home.glob(name)
    ]


def _with_files(record: WeightRecord, source: Path) -> WeightRecord:
    """The record of weights that were written anew: in one file, or in shards with an index."""
    *shards, last = (
        Shard(file=part.name, sha256=sha256(part), size=part.stat().st_size)
        for part in parts(source)
    )
    return dataclasses.replace(
        record, file=last.file, sha256=last.sha256, size=last.size, shards=shards
    )


def _read(run: Path, kind: str) -> dict[str, Any]:
    path = run / f"{kind}.json"
    found = read_json(path, kind)
    if found is None:
        raise ValueError(
            "Only the folder of a finished run of `mf-zoo train` can be published: it has a "
            f"config.json and a result.json. Received: {run} without {path.name}"
        )
    return found


def _record(name: str, config: dict[str, Any], result: dict[str, Any]) -> WeightRecord:
    from mf_zoo import data

    # Runs made before networks normalised by their own dataset do not say: by CIFAR-10's.
    mean, std = config.get("normalization") or (None, None)
    grown_from = result.get("grown_from", [])
    first = grown_from[0] if grown_from else config
    start = first.get("weights")
    if start is not None and first["weights_sha256"]:
        start = f"{Path(start).name} sha256:{first['weights_sha256']}"
    return WeightRecord(
        name=name,
        file=f"{file_stem(result['model'], name)}{SUFFIX}",
        classes=len(data.class_names(result["dataset"])),
        quadrature=config["recipe"]["quadrature"],
        horizon=config["recipe"]["horizon"],
        date=result["date"][: len("YYYY-MM-DD")],
        versions=config["versions"],
        reorder=config["recipe"].get("reorder", True),
        integrator=config["recipe"].get("integrator", "euler"),
        shortcut=config["recipe"].get("shortcut"),
        initial_weights=start,
        freeze=config.get("freeze", ()),
        mean=mean,
        std=std,
        train_seconds=result.get("total_train_seconds", result.get("train_seconds")),
        grown_from=[
            {field: rung[field] for field in ("model", "epochs", "sha256")} for rung in grown_from
        ],
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
                "image_passes",
                "multiply_adds",
            )
        },
    )
