"""A search as a folder: settings, trials, the best recipe."""

import shlex
import sys
from pathlib import Path
from typing import Any

import keras
import keras_tuner

from mf_zoo import data, devices, files
from mf_zoo.errors import UserError, user_errors
from mf_zoo.training import assembly, pretrained, runs
from mf_zoo.training.folder import open_folder
from mf_zoo.training.recipes import Recipe
from mf_zoo.tuning import results
from mf_zoo.tuning.chief import as_chief, check_chief
from mf_zoo.tuning.folder import load_data, make_tuner, read_search
from mf_zoo.tuning.hypermodel import MeanFieldHyperModel
from mf_zoo.tuning.settings import SEARCH, SearchSettings

_DEFAULT_TRIALS = {"random": 20, "bayesian": 20}


def tune(
    settings: SearchSettings,
    output: str | Path,
    *,
    data_dir: str | Path | None = None,
    threads: int | None = None,
    resume: bool = False,
    chief: str | None = None,
    allow_remote: bool = False,
    worker_timeout: float = 60.0,
    verbose: str | int = 0,
    command: str | None = None,
) -> dict[str, Any]:
    """Searches the recipe that trains a model best, and writes a folder.

    Choices are made on the last `holdout` training images, which are not trained on; test images
    are never read. The folder holds `search.json` (every setting), `trials.csv` (a row per trial,
    written anew after each), `keras_tuner/` (the state of the search), and at the end `best.toml`
    (a recipe for `train` and `mf-zoo train --recipe`), `result.json` and, where matplotlib is
    installed, `trials.png`. The best trial is the best of those that were trained longest.

    Killed at any moment and resumed, a search ends with the same trials as one that was let alone.
    The trial that was running is run again.

    Args:
        settings: What is searched and how, a `SearchSettings`.
        output: The search folder; must not hold a search unless `resume`.
        data_dir: Where `mf_zoo.data.load` finds the dataset.
        threads: Limit for the threads of the backend (TensorFlow, PyTorch).
        resume: Whether to resume the search in `output`, which must have been started with the same
            settings; starts it if there is none.
        chief: `"HOST:PORT"`, to let workers run the trials (`work`) instead of this process.
            Everybody who can reach the port can take part: it is neither encrypted nor protected.
        allow_remote: Whether `chief` may be an address that other machines reach.
        worker_timeout: Seconds without a sign of life after which a worker's trial is given to
            another one.
        verbose: Of `keras.Model.fit` in a trial.
        command: The command line to record.

    Returns:
        The content of `result.json`.

    Raises:
        UserError: If the input is bad, the folder cannot be used, or no trial succeeds.

    Example:

    ```python
    from mf_zoo.training import get_recipe
    from mf_zoo.tuning import SearchSettings, tune

    settings = SearchSettings("MFResNet20", recipe=get_recipe("quick", epochs=9))
    result = tune(settings, "runs/search", data_dir="data")
    result["val_error"], result["recipe"]
    ```
    """
    assembly.check_counts(threads=threads)
    if not worker_timeout > 0:
        raise UserError(f"`worker_timeout` must be above 0 seconds. Received: {worker_timeout!r}")
    if chief is not None:
        chief = check_chief(chief, allow_remote)
    folder = Path(output)
    with user_errors():
        dataset = data.get(settings.dataset)
        settings = _resolve(settings)
        hypermodel = MeanFieldHyperModel.from_settings(settings)
    with files.locked(folder):
        resumed = open_folder(folder, settings.to_dict(), resume, file=SEARCH, kind="search")
        if chief is None:
            training, validation = load_data(settings, data_dir, threads)
        if settings.weights is not None or settings.freeze:
            with user_errors():  # What would fail in every trial fails here.
                for model in hypermodel.models:
                    hypermodel.network(model, Recipe(name="any"))
        if not resumed:
            config = {
                **settings.to_dict(),
                # `None` is that of the weights.
                "normalization": None if settings.weights else (dataset.mean, dataset.std),
                "worker_timeout": worker_timeout,
                "data_dir": None if data_dir is None else str(data_dir),
                "backend": keras.config.backend(),
                "versions": {**devices.versions(), "keras_tuner": keras_tuner.__version__},
                "device": devices.device(threads),
                "command": command or shlex.join(sys.argv),
                "date": devices.now(),
            }
            files.write_json(folder / SEARCH, config)
        hypermodel.normalization = runs.normalization(read_search(folder))
        with as_chief(chief):
            with user_errors():
                one = make_tuner(folder, settings, hypermodel)
            one.oracle.on_trial_end = lambda oracle, trial: results.report(
                folder, hypermodel, oracle, trial
            )
            if chief is not None:
                one.oracle.worker_timeout = worker_timeout
                # One failure of workers must not leave the others waiting: all trials are made.
                one.oracle.max_consecutive_failed_trials = sys.maxsize
                print(f"workers: mf-zoo tune --worker {chief} --output {shlex.quote(str(folder))}")
                sys.stdout.flush()
                one.search(verbose=0)
            else:
                one.save()  # from now on there is something to resume
                one.search(
                    *training,
                    validation_data=validation,
                    epochs=settings.recipe.epochs,
                    verbose=verbose,
                )
        return results.finish(folder, hypermodel, one.oracle, settings)


def _resolve(settings: SearchSettings) -> SearchSettings:
    """The settings with what they leave open filled in, as the folder records them."""
    settings = settings.replace(**pretrained.settings(settings.weights, settings.freeze))
    hypermodel = MeanFieldHyperModel.from_settings(settings)
    return settings.replace(
        models=hypermodel.models,
        max_trials=settings.max_trials or _DEFAULT_TRIALS.get(settings.tuner),
        search=hypermodel.space,
    )
