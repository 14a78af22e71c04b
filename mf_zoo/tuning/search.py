"""A search as a folder: settings, trials, the best recipe; alone or with workers."""

import contextlib
import ipaddress
import os
import re
import shlex
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import keras_tuner

from mf_zoo import data, devices, files
from mf_zoo.errors import UserError, user_errors
from mf_zoo.training import pretrained, runner, runs
from mf_zoo.training.recipes import Recipe, get_recipe, recipe_toml
from mf_zoo.tuning import oracles
from mf_zoo.tuning.hypermodel import MeanFieldHyperModel
from mf_zoo.tuning.space import SEARCH, TUNERS, format_search, parse_search

TRIALS = "trials.csv"
BEST = "best.toml"
PICTURE = "trials.png"

_OBJECTIVE = "val_accuracy"
_DEFAULT_TRIALS = {"random": 20, "bayesian": 20}
_COLUMNS = (
    *("trial", "status", "epochs", "goes_on_from", "val_error", "val_loss", "loss", "accuracy"),
    *("seconds", "model"),
)
_NO_PROXY = "no_grpc_proxy"  # read by gRPC, in this spelling
_PATIENCE = 60.0  # seconds that a worker waits for its chief to appear


def tune(
    models: str | Sequence[str],
    dataset: str = "cifar10",
    *,
    output: str | Path,
    data_dir: str | Path | None = None,
    tuner: str = "hyperband",
    max_trials: int | None = None,
    epochs: int | None = None,
    holdout: int = 5000,
    limit: int | None = None,
    recipe: str | Path | Recipe = "quick",
    search: Iterable[str] | Mapping[str, Any] | None = None,
    weights: str | Path | None = None,
    freeze: Sequence[str] = (),
    seed: int = 0,
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

    Killed at any moment and resumed, a search ends with the same trials as one that was let alone;
    the trial that was running is run again.

    Args:
        models: Name of a model, or several to choose from.
        dataset: `"cifar10"` or `"cifar100"`.
        output: The folder; must not hold a search unless `resume`.
        data_dir: Where `mf_zoo.data.load` finds the dataset.
        tuner: `"random"`, `"bayesian"` (needs scikit-learn), `"hyperband"` or `"grid"`.
        max_trials: Number of trials. `None` is 20 for random and Bayesian search, one run of
            Hyperband, or the whole grid.
        epochs: Of a trial, with Hyperband of the longest ones; `None` for the recipe's.
        holdout: Number of training images to choose by.
        limit: Use only the first `limit` training images (holdout included).
        recipe: The values that are not searched: a name of `RECIPES`, a `.toml` file, a `Recipe`.
        search: What is searched, as in `MeanFieldHyperModel`.
        weights: Registered weights that every trial starts from, such as `"cifar10"`, or a
            `.weights.h5` file. `train` and `mf-zoo train` take the same. Weights that were trained
            on all images of the same dataset have seen those held out: errors are then too low, and
            choices worth little.
        freeze: Layers that are not trained: names, or patterns as in a shell (`"stage*"`).
        seed: Of the search, of the initial weights and of the batches of all trials. Searches with
            neighbouring seeds share trials, for keras-tuner counts on from the seed: for
            independent ones choose seeds further apart than there are trials.
        threads: Limit for the threads of the backend (TensorFlow, PyTorch).
        resume: Go on with the search in `output`, which must have been started with the same
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

    >>> from mf_zoo.tuning import tune
    >>> result = tune("MFResNet20", output="runs/search", epochs=9)  # doctest: +SKIP
    >>> result["val_error"], result["recipe"]  # doctest: +SKIP
    """
    runner.check_counts(max_trials=max_trials, epochs=epochs, limit=limit, threads=threads)
    if type(seed) is not int or seed < 0:
        raise UserError(f"`seed` must be a whole number from 0. Received: {seed!r}")
    if type(holdout) is not int or holdout < 1:
        raise UserError(
            "`holdout` must be a whole number from 1: choices are never made on test images. "
            f"Received: {holdout!r}"
        )
    if tuner not in TUNERS:
        raise UserError(f"`tuner` must be one of {', '.join(TUNERS)}. Received: {tuner!r}")
    if not worker_timeout > 0:
        raise UserError(f"`worker_timeout` must be above 0 seconds. Received: {worker_timeout!r}")
    if chief is not None:
        chief = check_address("chief", chief)
        if not allow_remote and not _is_loopback(chief):
            raise UserError(
                "The port of a search is neither encrypted nor protected, so `chief` must be an "
                "address of this machine alone, such as 127.0.0.1, unless you allow remote workers "
                f"(`allow_remote`, --allow-remote). Received: chief={chief!r}"
            )
    folder = Path(output)
    with user_errors():
        base = get_recipe(recipe) if epochs is None else get_recipe(recipe, epochs=epochs)
        start = pretrained.settings(weights, freeze)
        hypermodel = MeanFieldHyperModel(
            models,
            classes=len(data.class_names(dataset)),
            recipe=base,
            search=search,
            weights=start["weights"],
            freeze=start["freeze"],
            seed=seed,
        )
    options = {
        "models": list(hypermodel.models),
        "dataset": dataset,
        "tuner": tuner,
        "max_trials": max_trials or _DEFAULT_TRIALS.get(tuner),
        "holdout": holdout,
        "limit": limit,
        "seed": seed,
        **start,
        "recipe": base.to_dict(),
        "search": format_search(hypermodel.space),
    }
    with files.locked(folder):
        runner.open_folder(folder, options, resume, file=SEARCH, kind="search")
        if chief is None:
            training, validation = _load_data(options, data_dir, threads)
        if start["weights"] is not None or start["freeze"]:
            with user_errors():  # What would fail in every trial fails here.
                for builder in hypermodel.models.values():
                    runner.build_network(
                        builder,
                        Recipe(name="any"),
                        hypermodel.classes,
                        start["weights"],
                        start["freeze"],
                    )
        config = {
            **options,
            "worker_timeout": worker_timeout,
            "data_dir": None if data_dir is None else str(data_dir),
            "backend": keras.config.backend(),
            "versions": {**devices.versions(), "keras_tuner": keras_tuner.__version__},
            "device": devices.device(threads),
            "command": command or shlex.join(sys.argv),
            "date": devices.now(),
        }
        if not (folder / SEARCH).exists():
            files.write_json(folder / SEARCH, config)
        with _as_chief(chief):
            with user_errors():
                one = _make_tuner(folder, options, hypermodel)
            one.oracle.on_trial_end = lambda oracle, trial: _report(
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
                with _failures():
                    one.search(
                        *training, validation_data=validation, epochs=base.epochs, verbose=verbose
                    )
        return _finish(folder, hypermodel, one.oracle, config)


def work(
    output: str | Path,
    *,
    worker: str,
    tuner_id: str | None = None,
    data_dir: str | Path | None = None,
    threads: int | None = None,
    verbose: str | int = 0,
) -> None:
    """Runs trials for the chief of a search until there are none left.

    The settings are those in the search's folder, which chief and workers share: Hyperband goes on
    from checkpoints that another worker wrote.

    Args:
        output: The folder that the chief writes.
        worker: `"HOST:PORT"` of the chief.
        tuner_id: Name of this worker, unlike all others; `None` for one made of the machine's name
            and the process's number. A worker that was killed and is started again under its name
            runs its trial again at once, under another name that happens after `worker_timeout`.
        data_dir: Where `mf_zoo.data.load` finds the dataset here; `None` for where the chief
            was told to look.
        threads: Limit for the threads of the backend (TensorFlow, PyTorch).
        verbose: Of `keras.Model.fit` in a trial.

    Raises:
        UserError: If there is no chief, or it goes away.
    """
    import grpc

    worker = check_address("worker", worker)
    name = f"{socket.gethostname()}-{os.getpid()}".replace("chief", "")
    name = name if tuner_id is None else tuner_id
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name) or "chief" in name:
        raise UserError(
            "`tuner_id` must be made of letters, digits, '_', '.' and '-', and not contain "
            f"'chief'. Received: {tuner_id!r}"
        )
    folder = Path(output)
    if (folder / runs.RESULT).exists():
        raise UserError(f"The search in {folder} is finished: see {folder / runs.RESULT}")
    with grpc.insecure_channel(worker) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_PATIENCE)
        except grpc.FutureTimeoutError as error:
            raise UserError(
                f"No chief answers within {_PATIENCE:g} s. Received: {worker}"
            ) from error
    config = read_search(folder)
    training, validation = _load_data(config, data_dir or config["data_dir"], threads)
    with user_errors():
        recipe = Recipe(**config["recipe"])
        hypermodel = MeanFieldHyperModel(
            config["models"],
            classes=len(data.class_names(config["dataset"])),
            recipe=recipe,
            search=parse_search(config["search"]),
            weights=config["weights"],
            freeze=config["freeze"],
            seed=config["seed"],
        )
    with _environment(worker, name):
        one = _make_tuner(folder, config, hypermodel, heartbeat=config["worker_timeout"] / 4)
        if (folder / runs.RESULT).exists():  # The others have ended the search in the meantime.
            return
        try:
            one.search(*training, validation_data=validation, epochs=recipe.epochs, verbose=verbose)
        except grpc.RpcError as error:
            for _ in range(50):  # The chief writes it when it has closed the port.
                if (folder / runs.RESULT).exists():
                    return
                time.sleep(0.1)
            raise UserError(
                f"The chief at {worker} does not answer any more. Received: {error.code().name}, "
                f"{error.details()}"
            ) from error


def read_search(folder: Path) -> dict[str, Any]:
    """Reads the settings of the search in a folder.

    Raises:
        UserError: If there is none.
    """
    config = files.read_json(folder / SEARCH)
    if config is None:
        raise UserError(f"The folder must hold a search ({SEARCH}). Received: {folder}")
    return config


def check_address(name: str, address: str) -> str:
    """Checks `HOST:PORT`; returns it, a bare port or `:PORT` with the loopback address."""
    host, _, port = address.rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 0 < int(port) < 65536 or " " in host:
        raise UserError(f"`{name}` must be HOST:PORT. Received: {address!r}")
    return f"{host or '127.0.0.1'}:{port}"


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        found = socket.getaddrinfo(host, None)
    except OSError as error:
        raise UserError(f"`chief` must be a known host: {error}. Received: {host!r}") from error
    return all(ipaddress.ip_address(one[4][0].partition("%")[0]).is_loopback for one in found)


@contextlib.contextmanager
def _environment(address: str, tuner_id: str) -> Iterator[None]:
    """What keras-tuner reads of the environment, for a while."""
    host, _, port = address.rpartition(":")
    values = {
        "KERASTUNER_ORACLE_IP": host,
        "KERASTUNER_ORACLE_PORT": port,
        "KERASTUNER_TUNER_ID": tuner_id,
    }
    if _is_loopback(address):  # gRPC goes through a proxy of the environment, to there too.
        exceptions = os.environ.get(_NO_PROXY) or os.environ.get("no_proxy") or ""
        values[_NO_PROXY] = f"{exceptions},{host.strip('[]')}".strip(",")
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _as_chief(address: str | None) -> Iterator[None]:
    if address is None:
        yield
        return
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # gRPC would share the port with another chief of the same user and say nothing.
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host.strip("[]"), int(port)))
        except OSError as error:
            raise UserError(
                f"`chief` must be an address that this machine can listen at: {error.strerror}. "
                f"Received: {address!r}"
            ) from error
    with _environment(address, "chief"):
        yield


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Turns keras-tuner's complaint about trials that failed in a row into a `UserError`."""
    try:
        yield
    except RuntimeError as error:
        if "consecutive failures" not in str(error):
            raise
        raise UserError(
            "The trials that a search begins with must succeed; three in a row failed. Received: "
            + str(error).strip().splitlines()[-1]
        ) from error


def _load_data(config: Mapping[str, Any], data_dir: Any, threads: int | None) -> tuple[Any, Any]:
    if threads and not devices.limit_threads(threads):
        print(f"note: --threads has no effect on {keras.config.backend()} here", file=sys.stderr)
    training, validation, _ = runner.load_data(
        config["dataset"], data_dir, config["holdout"], config["limit"]
    )
    return training, validation


def _make_tuner(
    folder: Path,
    config: Mapping[str, Any],
    hypermodel: MeanFieldHyperModel,
    heartbeat: float | None = None,
) -> oracles.Tuner:
    # keras-tuner takes the seed 0 for none.
    arguments = {"objective": _OBJECTIVE, "seed": config["seed"] + 1}
    trials = config["max_trials"]
    if config["tuner"] == "hyperband":
        oracle = oracles.HyperbandOracle(
            **arguments,
            max_epochs=config["recipe"]["epochs"],
            # As many runs as the trials last for.
            hyperband_iterations=trials or 1,
        )
        oracle.max_trials = trials
    else:
        kind = {
            "random": oracles.RandomSearchOracle,
            "bayesian": oracles.BayesianOptimizationOracle,
            "grid": oracles.GridSearchOracle,
        }[config["tuner"]]
        oracle = kind(**arguments, max_trials=trials)
    return oracles.Tuner(
        oracle=oracle,
        hypermodel=hypermodel,
        heartbeat=heartbeat,
        directory=str(folder),
        project_name="keras_tuner",
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


def _report(folder: Path, hypermodel: MeanFieldHyperModel, oracle: Any, trial: Any) -> None:
    """Writes the table and a line about the trial that has ended."""
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


def _finish(
    folder: Path, hypermodel: MeanFieldHyperModel, oracle: Any, config: Mapping[str, Any]
) -> dict[str, Any]:
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
        f"{model} on {config['dataset']}: error {_error(best):.2f} % on the last "
        f"{config['holdout']} training images\nafter {_epochs(hypermodel, best)} epochs, trial "
        f"{best.trial_id} of {len(oracle.trials)}, seed {config['seed']}."
    )
    start = [f"--weights {shlex.quote(config['weights'])}"] if config["weights"] else []
    start += [f"--freeze {shlex.quote(pattern)}" for pattern in config["freeze"]]
    if start:
        comment += f"\nFound with, and for: mf-zoo train {model} {' '.join(start)}"
    text = recipe_toml(recipe, comment)
    files.write_atomically(folder / BEST, lambda part: part.write_text(text, encoding="utf-8"))
    result = {
        "best_trial": best.trial_id,
        "model": model,
        "dataset": config["dataset"],
        "weights": config["weights"],
        "freeze": config["freeze"],
        "evaluated_on": f"last {config['holdout']} training images",
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
