"""The search folder: what it holds, and what a chief and its workers make of its settings."""

import sys
from pathlib import Path
from typing import Any

import keras

from mf_zoo import devices, files
from mf_zoo.errors import UserError
from mf_zoo.training import assembly
from mf_zoo.tuning import oracles
from mf_zoo.tuning.hypermodel import MeanFieldHyperModel
from mf_zoo.tuning.settings import SEARCH, SearchSettings

TRIALS = "trials.csv"
BEST = "best.toml"
PICTURE = "trials.png"

_OBJECTIVE = "val_accuracy"


def read_search(folder: Path) -> dict[str, Any]:
    """Reads the content of `search.json`.

    Args:
        folder: The search folder.

    Returns:
        The settings of the search, and what is recorded beside them.

    Raises:
        UserError: If the folder holds no search.
    """
    config = files.read_json(folder / SEARCH, "search")
    if config is None:
        raise UserError(f"The folder must hold a search ({SEARCH}). Received: {folder}")
    return config


def load_data(settings: SearchSettings, data_dir: Any, threads: int | None) -> tuple[Any, Any]:
    """Limits the threads, and loads the images to train on and those to choose by."""
    if threads and not devices.limit_threads(threads):
        print(f"note: --threads has no effect on {keras.config.backend()} here", file=sys.stderr)
    training, validation, _ = assembly.load_data(
        settings.dataset, data_dir, settings.holdout, settings.limit
    )
    return training, validation


def make_tuner(
    folder: Path,
    settings: SearchSettings,
    hypermodel: MeanFieldHyperModel,
    heartbeat: float | None = None,
) -> oracles.Tuner:
    """The tuner of a search, with what its folder knows of trials.

    Args:
        folder: The search folder.
        settings: Those of the search, with a number of trials wherever the tuner needs one.
        hypermodel: What is searched.
        heartbeat: Seconds between a worker's signs of life.

    Returns:
        The tuner, whose oracle is in this process or in the chief's.
    """
    # keras-tuner takes the seed 0 for none.
    arguments = {"objective": _OBJECTIVE, "seed": settings.seed + 1}
    trials = settings.max_trials
    if settings.tuner == "hyperband":
        oracle = oracles.HyperbandOracle(
            **arguments,
            max_epochs=settings.recipe.epochs,
            # As many runs as the trials last for.
            hyperband_iterations=trials or 1,
        )
        oracle.max_trials = trials
    else:
        kind = {
            "random": oracles.RandomSearchOracle,
            "bayesian": oracles.BayesianOptimizationOracle,
            "grid": oracles.GridSearchOracle,
        }[settings.tuner]
        oracle = kind(**arguments, max_trials=trials)
    return oracles.Tuner(
        oracle=oracle,
        hypermodel=hypermodel,
        heartbeat=heartbeat,
        directory=str(folder),
        project_name="keras_tuner",
    )
