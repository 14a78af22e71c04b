"""What is gathered from the runs of a campaign: `runs.csv`, histories, times."""

from pathlib import Path
from typing import Any

from mf_zoo import files, schemas
from mf_zoo.errors import UserError
from mf_zoo.training import runs
from mf_zoo.training.campaign.file import Run, texts

RUNS = "runs.csv"
COLUMNS = tuple(schemas.RUNS)


def whole_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a history, but for one that is being written or was cut short."""
    return files.read_rows(path, "history", growing=True)


def summary(run: Run, folder: Path | None, state: str) -> dict[str, str]:
    """A line of `runs.csv`; a run that is not finished has no error and no loss.

    Args:
        run: The run.
        folder: Its folder; `None` if nothing in it can be read.
        state: Its state.
    """
    settings = run.settings
    config: dict[str, Any] = {}
    result: dict[str, Any] | None = None
    history: list[dict[str, str]] = []
    if folder is not None:
        config = files.read_json(folder / runs.CONFIG, "config") or {}
        history = whole_rows(folder / runs.HISTORY)
        if state == "finished":
            result = files.read_json(folder / runs.RESULT, "result")
    seconds = sum(float(row["seconds"]) for row in history)
    images = config.get("train_images", 0) * len(history)
    until = [] if settings.until is None else [f"until={settings.until}"]
    values: dict[str, Any] = {
        "run": run.name,
        # What it will be when somebody looks at it; a driver may be killed at any moment.
        "state": "begun" if state in ("running", "stopped", "busy") else state,
        "model": settings.model,
        "dataset": settings.dataset,
        "recipe": settings.recipe.name,
        "overrides": " ".join([*texts(run.overrides), *until]),
        "seed": settings.seed,
        "evaluated_on": config.get("evaluated_on"),
        "epochs": settings.last_epoch,
        "epochs_done": len(history),
        "order_swaps": sum(int(row["order_swaps"]) for row in history),
        "train_images": config.get("train_images"),
        "batch_size": settings.recipe.batch_size,
        "seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 1) if seconds else None,
        "backend": config.get("backend"),
        "device": config.get("device"),
        "versions": " ".join(f"{k}-{v}" for k, v in config.get("versions", {}).items()),
        "date": config.get("date"),
    }
    if result is not None:
        # The other columns are what is measured at the end.
        values |= {key: result.get(key) for key in COLUMNS if key not in values}
        values["date"] = result.get("date")
    return {key: "" if values.get(key) is None else str(values[key]) for key in COLUMNS}


def copy_histories(folder: Path, results: Path, name: str) -> None:
    """Copies the history of a run, and its times as one line for each epoch that changed any."""
    history = files.read_rows(folder / runs.HISTORY, "history")
    if not history:
        raise UserError(
            f"A finished run must have a {runs.HISTORY} with its epochs. Received: {folder}"
        )
    for row in history:
        for key in ("learning_rate", "loss", "accuracy", "test_loss", "test_error"):
            row[key] = f"{float(row[key]):.6g}" if row[key] else ""
    files.write_rows(results / f"{name}.{runs.HISTORY}", history, list(history[0]))
    epochs: dict[int, dict[str, str]] = {}
    for row in files.read_rows(folder / runs.TIMES, "times"):
        times = epochs.setdefault(int(row["epoch"]), {})
        times[f"{row['stage']}/{row['particle']}"] = f"{float(row['time']):.4f}"
    kept: list[dict[str, Any]] = []
    for epoch, times in epochs.items():
        if not kept or {**kept[-1], **times} != kept[-1]:
            kept.append({"epoch": epoch, **times})
    if kept:
        # A network that grows gets particles on the way.
        columns = dict.fromkeys(key for row in kept for key in row)
        files.write_rows(results / f"{name}.{runs.TIMES}", kept, columns)
