"""The results of a search: a row a trial, the best recipe, a picture."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mf_zoo import devices, files
from mf_zoo.errors import UserError
from mf_zoo.training import runs
from mf_zoo.training.recipes import recipe_toml
from mf_zoo.tuning.folder import BEST, PICTURE, TRIALS, read_search
from mf_zoo.tuning.hypermodel import MeanFieldHyperModel
from mf_zoo.tuning.settings import SearchSettings

_COLUMNS = (
    *("trial", "status", "epochs", "goes_on_from", "val_error", "val_loss", "loss", "accuracy"),
    *("seconds", "model"),
)


def _metric(trial: Any, name: str) -> float | None:
    return float(trial.metrics.get_last_value(name)) if trial.metrics.exists(name) else None


def _epochs(hypermodel: MeanFieldHyperModel, trial: Any) -> int:
    return trial.hyperparameters.values.get("tuner/epochs", hypermodel.base.epochs)


def _error(trial: Any) -> float:
    return 100 * (1 - float(trial.score))


def _best(hypermodel: MeanFieldHyperModel, oracle: Any) -> Any:
    """The best of the trials that were trained longest; `None` if none was completed."""
    done = [trial for trial in oracle.trials.values() if trial.status == "COMPLETED"]
    return max(
        sorted(done, key=lambda trial: trial.trial_id),
        key=lambda trial: (_epochs(hypermodel, trial), trial.score),
        default=None,
    )


def table(hypermodel: MeanFieldHyperModel, oracle: Any) -> list[dict[str, Any]]:
    """The trials of a search as rows, in the order of their start.

    Args:
        hypermodel: What was searched.
        oracle: The oracle that knows the trials.

    Returns:
        A dictionary a trial: its number, status and measures, and the model and recipe values
        that it was given; `None` for values that did not matter in it.
    """
    rows = []
    for trial_id in oracle.start_order:
        trial = oracle.trials[trial_id]
        values = trial.hyperparameters.values
        recipe = hypermodel.recipe(trial.hyperparameters.copy()).to_dict()
        done = trial.status == "COMPLETED"
        row = {
            "trial": trial.trial_id,
            "status": trial.status,
            "epochs": _epochs(hypermodel, trial),
            "goes_on_from": values.get("tuner/trial_id"),
            "val_error": round(_error(trial), 4) if done else None,
            **{name: _metric(trial, name) for name in ("val_loss", "loss", "accuracy")},
            "seconds": _metric(trial, "seconds"),
            "model": values.get("model"),
            **{name: recipe[name] if name in values else None for name in hypermodel.space},
        }
        rows.append(row)
    return rows


def report(folder: Path, hypermodel: MeanFieldHyperModel, oracle: Any, trial: Any) -> None:
    """Writes the table, and prints a line about the trial that has ended."""
    _write_table(folder, hypermodel, oracle)
    count = f"{len(oracle.end_order)}" + (f" of {oracle.max_trials}" if oracle.max_trials else "")
    best = _best(hypermodel, oracle)
    if trial.status != "COMPLETED":
        reason = (trial.message or "").strip().splitlines()[-1:]
        what = f"{trial.status.lower()}: {''.join(reason) or 'see the worker'}"
    else:
        epochs = _epochs(hypermodel, trial)
        seconds = _metric(trial, "seconds") or 0.0
        what = f"error {_error(trial):.2f} % after {epochs} epochs, {seconds:.0f} s"
    line = f"trial {trial.trial_id} ({count}): {what}"
    if best is not None:
        line += f"; best {_error(best):.2f} % (trial {best.trial_id})"
    print(line, flush=True)


def _write_table(folder: Path, hypermodel: MeanFieldHyperModel, oracle: Any) -> None:
    columns = [*_COLUMNS, *hypermodel.space]
    files.write_rows(folder / TRIALS, table(hypermodel, oracle), columns)


def finish(
    folder: Path, hypermodel: MeanFieldHyperModel, oracle: Any, settings: SearchSettings
) -> dict[str, Any]:
    """Writes the table, the best recipe, the picture and `result.json`, the end of a search.

    Args:
        folder: The search folder.
        hypermodel: What was searched.
        oracle: The oracle that knows the trials.
        settings: Those of the search.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: If no trial was completed.
    """
    _write_table(folder, hypermodel, oracle)
    best = _best(hypermodel, oracle)
    if best is None:
        messages = [trial.message for trial in oracle.trials.values() if trial.message]
        last = messages[-1].strip().splitlines()[-1] if messages else "none"
        raise UserError(f"A search needs a trial that can be completed. Received: {last}")
    rows = table(hypermodel, oracle)
    hp = best.hyperparameters.copy()
    model, recipe = hypermodel.model_name(hp), hypermodel.recipe(hp)
    comment = (
        f"{model} on {settings.dataset}: error {_error(best):.2f} % on the last "
        f"{settings.holdout} training images\nafter {_epochs(hypermodel, best)} epochs, trial "
        f"{best.trial_id} of {len(oracle.trials)}, seed {settings.seed}."
    )
    start = [f"--weights {shlex.quote(settings.weights)}"] if settings.weights else []
    start += [f"--freeze {shlex.quote(pattern)}" for pattern in settings.freeze]
    if start:
        comment += f"\nFound with, and for: mf-zoo train {model} {' '.join(start)}"
    text = recipe_toml(recipe, comment)
    files.write_atomically(folder / BEST, lambda part: part.write_text(text, encoding="utf-8"))
    result = {
        "best_trial": best.trial_id,
        "model": model,
        "dataset": settings.dataset,
        "weights": settings.weights,
        "freeze": list(settings.freeze),
        "evaluated_on": f"last {settings.holdout} training images",
        "val_error": round(_error(best), 4),
        "epochs": _epochs(hypermodel, best),
        "trials": len(rows),
        "completed": sum(row["status"] == "COMPLETED" for row in rows),
        "trial_seconds": round(sum(row["seconds"] or 0.0 for row in rows), 1),
        "recipe": BEST,
        "picture": _draw(folder, rows, hypermodel),
        "command": read_search(folder)["command"],
        "date": devices.now(),
    }
    files.write_json(folder / runs.RESULT, result)
    return result


def _draw(
    folder: Path, rows: Sequence[Mapping[str, Any]], hypermodel: MeanFieldHyperModel
) -> str | None:
    from mf_zoo.tuning.picture import parallel_coordinates

    names = [*(["model"] if len(hypermodel.models) > 1 else []), *hypermodel.space]
    logarithmic = [
        name
        for name, values in hypermodel.space.items()
        if isinstance(values, tuple) and values[0] > 0 and values[1] >= 10 * values[0]
    ]
    try:
        figure = parallel_coordinates(rows, names, logarithmic)
    except ImportError:
        print("no picture: it needs matplotlib, pip install 'mf_zoo[plot]'", file=sys.stderr)
        return None
    files.write_atomically(
        folder / PICTURE, lambda part: figure.savefig(part, format="png", dpi=120)
    )
    return PICTURE
