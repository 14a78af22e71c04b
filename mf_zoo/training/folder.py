"""Opening a run folder, resuming from it, and writing the result into it."""

import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from mf_zoo import applications, devices, files
from mf_zoo.errors import UserError, one_line
from mf_zoo.training import ladder, runs
from mf_zoo.training.callbacks import random_states
from mf_zoo.training.evaluation import Evaluation
from mf_zoo.training.ladder import Trunk
from mf_zoo.training.settings import RunSettings
from mf_zoo.weights.files import load_model, save


def open_folder(
    folder: Path,
    options: Mapping[str, Any],
    resume: bool,
    *,
    file: str = runs.CONFIG,
    kind: str = "run",
) -> bool:
    """Checks that what is asked for can be done in a folder.

    Args:
        folder: The folder, which exists.
        options: The settings, those of the recipe under `"recipe"`.
        resume: Whether to resume what is in the folder.
        file: Name of the file that holds the settings of what is in the folder.
        kind: What that is, for messages.

    Returns:
        Whether there is something to resume.

    Raises:
        UserError: If it is finished, has other settings, is not to be resumed, or is no such
            folder.
    """
    config = files.read_json(folder / file, "config" if kind == "run" else "search")
    if (folder / runs.RESULT).exists():
        raise UserError(
            f"The {kind} in {folder} is finished, with its result in {folder / runs.RESULT}, and "
            f"has nothing to resume. {_WHAT_TO_DO[kind]} Received: output={str(folder)!r}"
        )
    if config is None:
        names = {path.name for path in folder.iterdir()} - {files.LOCK, runs.RUNGS}
        if names and f"partial-{file}" not in names:
            raise UserError(f"The output folder must be new or empty. Received: {folder}")
        return False
    if not resume:
        raise UserError(
            f"{folder} holds a {kind} already: resume it by --resume, or name another folder"
        )
    now = {**options, "backend": keras.config.backend()}
    differing = [
        f"{key} is {there.get(key)!r} there and {value!r} here"
        for there, here in (
            (config, now),
            (config["recipe"], options["recipe"]),
        )
        for key, value in here.items()
        # A trunk is the same, wherever its folder is, if its digest is. Another version may
        # describe a recipe in other words.
        if key not in ("recipe", "trunk", "description") and there.get(key) != value
    ]
    if differing:
        raise UserError(
            f"A {kind} is resumed with the settings it was started with. {folder}: "
            + "; ".join(differing)
        )
    return True


_WHAT_TO_DO = {
    "run": "Measure it by `mf-zoo evaluate MODEL --weights FOLDER`, register it by `mf-zoo publish "
    "FOLDER`, or train again into another `output`.",
    "search": "Train with what it found by `mf-zoo train MODEL --recipe FOLDER/best.toml`, or "
    "search again into another `output`.",
}


def open_run(folder: Path, settings: RunSettings, resume: bool) -> dict[str, Any]:
    """Looks at a run folder, and reads from `state.json` where to resume.

    Returns:
        The state: the `epoch` after which to resume, 0 for a new run, and its checkpoint.

    Raises:
        UserError: As `open_folder`, or if the checkpoint is missing or damaged.
    """
    if not open_folder(folder, settings.to_dict(), resume):
        return {"epoch": 0}
    state = files.read_json(folder / runs.STATE, "state")
    if state is None:
        return {"epoch": 0}
    _check_epoch(folder, state, settings.last_epoch)
    if state.get("before") is not None:
        _check_epoch(folder, state["before"], state["epoch"] - 1)
    try:
        ladder.checkpoint(folder, state)
    except ladder.DamagedCheckpoint as error:
        state = _former(folder, state, error)
        ladder.checkpoint(folder, state)
    return state


def _check_epoch(folder: Path, state: Mapping[str, Any], last: int) -> None:
    if state["epoch"] > last:
        raise UserError(
            f"`epoch` in {folder / runs.STATE} must be from 0 to {last}. Received: {state['epoch']}"
        )


def _former(folder: Path, state: Mapping[str, Any], error: UserError) -> dict[str, Any]:
    """The state before the one whose checkpoint is damaged, which it says.

    Raises:
        UserError: The one given, if there is none before.
    """
    before = state.get("before")
    if before is None:
        raise error
    print(
        f"warning: {one_line(error)}; epoch {before['epoch'] + 1} is repeated from the one before",
        file=sys.stderr,
    )
    return dict(before)


def begun(folder: Path) -> dict[str, Any] | None:
    """What `config.json` holds of a run that has a checkpoint of its own, else `None`."""
    if not (folder / runs.STATE).exists():
        return None
    return files.read_json(folder / runs.CONFIG, "config")


def prepare(folder: Path, config: Mapping[str, Any], epoch: int, trunk: Trunk | None) -> None:
    """Has a run folder hold what it does after `epoch`, and no more.

    Args:
        folder: The run folder.
        config: What its `config.json` is to hold, if the run begins.
        epoch: The epoch after which it is resumed, 0 for a run that begins.
        trunk: What a run that begins grows from: the trunk's history and times are its own too.
    """
    if epoch == 0:
        with files.writing(folder):
            for name in (runs.HISTORY, runs.TIMES):
                (folder / name).unlink(missing_ok=True)
                if trunk is not None and (trunk.folder / name).exists():
                    shutil.copyfile(trunk.folder / name, folder / name)
        files.write_json(folder / runs.CONFIG, config)
        return
    for name in (runs.HISTORY, runs.TIMES):
        files.drop_rows_after(folder / name, epoch)
    found = {row.get("epoch") for row in files.read_rows(folder / runs.HISTORY, "history")}
    if missing := [str(n) for n in range(1, epoch + 1) if str(n) not in found]:
        print(
            f"warning: {folder / runs.HISTORY} has lost the rows of epochs {', '.join(missing)}; "
            "the weights are not touched by that, but seconds and image passes lack them",
            file=sys.stderr,
        )


def load_newest(folder: Path, state: dict[str, Any]) -> tuple[keras.Model, dict[str, Any]]:
    """The network of the newest checkpoint that can be loaded, and the state that names it.

    Raises:
        UserError: If none can.
    """
    try:
        return load_checkpoint(folder, state), state
    except ladder.DamagedCheckpoint as error:
        state = _former(folder, state, error)
    ladder.checkpoint(folder, state)
    return load_checkpoint(folder, state), state


def load_checkpoint(folder: Path, state: Mapping[str, Any]) -> keras.Model:
    """The network of a checkpoint, compiled, with the optimizer's state.

    Raises:
        DamagedCheckpoint: If it cannot be loaded.
    """
    # Imported for the classes that they register with Keras.
    import mf_zoo.layers
    import mf_zoo.optimizers  # noqa: F401

    path = folder / state["checkpoint"]
    try:
        network = load_model(path)
        for variable, value in zip(
            random_states(network), state.get("random_states", []), strict=True
        ):
            variable.assign(np.asarray(value, dtype=variable.dtype))
    except _UNREADABLE as error:
        raise ladder.DamagedCheckpoint(
            f"The checkpoint {path} cannot be loaded: {error}"
        ) from error
    return network


# What zipfile, json, h5py and Keras raise of a file that is not as they wrote it.
_UNREADABLE = (
    *(AttributeError, EOFError, IndexError, KeyError, NotImplementedError, OSError, OverflowError),
    *(RecursionError, TypeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error),
)


def write_result(
    folder: Path, config: Mapping[str, Any], final: keras.Model, scores: Evaluation, images: int
) -> dict[str, Any]:
    """Writes the weights and `result.json`, the end of a run.

    `image_passes`, `multiply_adds` and `total_train_seconds` are of all runs that it grew from and
    its own: training images times epochs; the multiply-adds of the network for an image, three
    times (forward, and the gradients by activations and by weights), for each pass; and the time of
    the training steps. What evaluation and recalibration take is left out.

    Args:
        folder: The run folder.
        config: What its `config.json` holds, of this process.
        final: The network after the last epoch, in float32.
        scores: What it was measured to do.
        images: Number of training images in an epoch.

    Returns:
        The content of `result.json`.
    """
    weights = folder / runs.WEIGHTS
    digest = files.write_atomically(weights, lambda partial: save(final, partial))
    history = files.read_rows(folder / runs.HISTORY, "history")
    if not history:
        raise UserError(
            f"A run must have a {runs.HISTORY} with a row for each epoch. Received: {folder}"
        )
    grown_from = config["grown_from"]
    own = history[grown_from[-1]["epochs"] if grown_from else 0 :]
    seconds = max(sum(float(row["seconds"]) for row in own), 0.001)
    passes = images * len(own)
    try:
        work = 3 * passes * applications.multiply_adds(final)
    except ValueError:  # a network of one's own, of layers that are not counted
        work = None
    result = {
        "model": config["model"],
        "dataset": config["dataset"],
        "evaluated_on": config["evaluated_on"],
        "test_error": round(scores.error, 6),
        "test_top5_error": round(scores.top5_error, 6),
        "test_coarse_error": None if scores.coarse_error is None else round(scores.coarse_error, 6),
        "test_loss": scores.nll,
        "test_ece": scores.ece,
        "train_loss": float(history[-1]["loss"]),
        "train_error": 100 * (1 - float(history[-1]["accuracy"])),
        "epochs": int(history[-1]["epoch"]),
        "recipe": config["recipe"]["name"],
        "seed": config["seed"],
        "parameters": final.count_params(),
        "order_swaps": sum(int(row["order_swaps"]) for row in history),
        "train_seconds": round(seconds, 1),
        "images_per_second": round(config["train_images"] * len(own) / seconds, 1),
        "total_train_seconds": round(_total(grown_from, "train_seconds", seconds), 1),
        "image_passes": _total(grown_from, "image_passes", passes),
        "multiply_adds": _total(grown_from, "multiply_adds", work),
        "grown_from": grown_from,
        "backend": config["backend"],
        "device": config["device"],
        "command": {**config, **(files.read_json(folder / runs.CONFIG, "config") or {})}["command"],
        "date": devices.now(),
        "file": runs.WEIGHTS,
        "size": weights.stat().st_size,
        "sha256": digest,
    }
    files.write_json(folder / runs.RESULT, result)
    return result


def _total(rungs: Sequence[Mapping[str, Any]], key: str, own: Any) -> Any:
    """What a run and those that it grew from took together; `None` where one does not say."""
    values = [*(rung[key] for rung in rungs), own]
    return None if None in values else sum(values)
