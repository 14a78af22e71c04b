"""Campaigns: a queue of runs, some at a time, that may be stopped at any moment and goes on."""

import contextlib
import dataclasses
import difflib
import inspect
import itertools
import os
import signal
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mf_zoo import files
from mf_zoo.errors import UserError
from mf_zoo.training import runs
from mf_zoo.training.recipes import Recipe, get_recipe, stored_values

RUNS = "runs.csv"
COLUMNS = (
    "run",
    "state",
    "model",
    "dataset",
    "recipe",
    "overrides",
    "seed",
    "evaluated_on",
    "epochs",
    "epochs_done",
    "test_error",
    "test_top5_error",
    "test_coarse_error",
    "test_loss",
    "train_error",
    "train_loss",
    "order_swaps",
    "parameters",
    "train_images",
    "batch_size",
    "seconds",
    "images_per_second",
    "backend",
    "device",
    "versions",
    "date",
    "sha256",
)
_KEYS = ("name", "jobs", "output", "results", "data_dir", "defaults", "mean_field", "runs")
_RUN_KEYS = (
    "model",
    "dataset",
    "recipe",
    "seed",
    "holdout",
    "limit",
    "eval_every",
    "threads",
    "on_device",
)
# What a run is started with and a resumed one must have been started with; see `runner.train`.
_IDENTITY = ("model", "dataset", "seed", "holdout", "limit", "eval_every", "recipe")
_POLL_SECONDS = 0.2
# A child may be killed at any moment; this is how long it may take to say how to resume.
_GRACE_SECONDS = 20.0


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a campaign: the arguments of `mf-zoo train` but the folders.

    Attributes:
        model, dataset, seed, holdout, limit, eval_every, threads, on_device: As in
            `mf_zoo.training.train`.
        recipe: The recipe with its overrides.
        base: Name or file of the recipe that the overrides change.
        overrides: The values in which `recipe` differs from that one, by name.
    """

    model: str
    dataset: str
    recipe: Recipe
    base: str
    overrides: Mapping[str, Any]
    seed: int = 0
    holdout: int = 0
    limit: int | None = None
    eval_every: int = 1
    threads: int | None = None
    on_device: bool = False

    @property
    def name(self) -> str:
        """Name of the run's folder. It says all settings, so that no other run can have it."""
        parts = [self.model, self.dataset, self.recipe.name, *_texts(self.overrides)]
        parts += [f"holdout={self.holdout}"] * bool(self.holdout)
        parts += [f"limit={self.limit}"] * bool(self.limit)
        return "-".join([*parts, f"seed{self.seed}"])

    def arguments(self, output: Path, data_dir: Path | None, resume: bool) -> list[str]:
        """The command line of the run, from `train` on."""
        found = ["train", self.model, "--dataset", self.dataset, "--recipe", self.base]
        for text in _texts(self.overrides):
            found += ["--set", text]
        found += ["--seed", str(self.seed), "--eval-every", str(self.eval_every)]
        for key in ("holdout", "limit", "threads"):
            if value := getattr(self, key):
                found += [f"--{key}", str(value)]
        found += ["--on-device"] * self.on_device
        if data_dir is not None:
            found += ["--data-dir", str(data_dir)]
        return [*found, "--verbose", "0", "--output", str(output), *["--resume"] * resume]

    def differences(self, config: Mapping[str, Any]) -> list[str]:
        """What a run folder's `config.json` says otherwise than this run."""
        wanted = {key: getattr(self, key) for key in _IDENTITY} | {"recipe": self.recipe.to_dict()}
        there = {**config, "recipe": stored_values(config.get("recipe", {}))}
        return [key for key, value in wanted.items() if there.get(key) != value]


@dataclasses.dataclass(frozen=True)
class Campaign:
    """What a campaign file says.

    Attributes:
        name: Name of the campaign.
        runs: The runs, in the order in which they are started.
        jobs: So many run at a time.
        output: Folder of the run folders.
        results: Folder of what is gathered from them.
        data_dir: Where the dataset is found.
    """

    name: str
    runs: tuple[Run, ...]
    jobs: int
    output: Path
    results: Path
    data_dir: Path | None


@dataclasses.dataclass
class Progress:
    """How far a run is: a line of the progress table.

    Attributes:
        run: Name of the run.
        epochs: Epochs it is to have.
        epoch: Epochs it has.
        error: The last epoch's test error that was measured, in percent.
        seconds: The last epoch's seconds of training.
        state: `"waiting"`, `"running"`, `"finished"`, `"failed"`, `"stopped"`, or `"busy"`: another
            process is at work in its folder.
        reason: Why it failed.
    """

    run: str
    epochs: int
    epoch: int = 0
    error: float | None = None
    seconds: float | None = None
    state: str = "waiting"
    reason: str = ""


def _texts(values: Mapping[str, Any]) -> list[str]:
    """`key=value` as `mf-zoo train --set` reads it."""
    words = {True: "true", False: "false", None: "none"}
    return [
        f"{key}={words[value] if value is None or isinstance(value, bool) else value}"
        for key, value in values.items()
    ]


# --- The campaign file -----------------------------------------------------------------------


def load_campaign(path: str | Path) -> Campaign:
    """Reads a campaign file.

    Its keys, `runs` being the only one that must be there:

    - `name` (default: the file's stem), `jobs` (1), `output` (`runs/NAME`), `results`
      (`results/NAME`), `data_dir`;
    - `[defaults]`: values for all runs;
    - `[mean_field]`: values for all runs of networks with learned times, before those of a run;
    - `[[runs]]`: `model`, `seed`, `dataset`, `recipe` (a name, or a file beside the campaign's),
      `holdout`, `limit`, `eval_every`, `threads`, `on_device` as in `mf_zoo.training.train`, and
      any value of the recipe (`"none"` for none). Lists are multiplied out: seeds vary slowest,
      models fastest, the others in between in the order in which they are listed.

    The first seeds of all tables come first, then the second ones, and so on. So a network that is
    listed beside its twin is trained beside it, and what a time limit leaves is whole.

    Args:
        path: The TOML file.

    Returns:
        The `Campaign`.

    Raises:
        ValueError: For anything that cannot be run as it is written, or is there twice.
        UserError: For a model that has not the settings it is given.
        OSError: If the file cannot be read.

    Example:

        jobs = 2

        [defaults]
        recipe = "cosine"
        on_device = true

        [[runs]]
        model = ["MFResNet20", "ResNet20"]
        seed = [0, 1, 2]
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"A campaign file must be TOML: {error}. Received: {path}") from error
    _check_keys("A campaign file's", content, _KEYS)
    defaults, mean_field = content.get("defaults", {}), content.get("mean_field", {})
    for key, values in {"defaults": defaults, "mean_field": mean_field}.items():
        if not isinstance(values, dict):
            raise ValueError(f"`{key}` must be a table of values. Received: {values!r}")
    tables = content.get("runs", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        raise ValueError(f"A campaign file must have tables [[runs]]. Received: {path}")
    numbered = [
        (number, _run(values, mean_field, path.parent))
        for table in tables
        for number, values in _multiplied({**defaults, **table})
    ]
    found = [run for _, run in sorted(numbered, key=lambda pair: pair[0])]
    names = [run.name for run in found]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"A campaign must have each run once. Received: {twice[0]!r} twice")
    for key in ("name", "output", "results", "data_dir"):
        if not isinstance(content.get(key, ""), str):
            raise ValueError(f"`{key}` must be a string. Received: {key}={content[key]!r}")
    name = content.get("name", path.stem)
    jobs = content.get("jobs", 1)
    if type(jobs) is not int or jobs < 1:
        raise ValueError(f"`jobs` must be a whole number from 1. Received: jobs={jobs!r}")
    return Campaign(
        name=name,
        runs=tuple(found),
        jobs=jobs,
        output=Path(content.get("output", Path("runs") / name)),
        results=Path(content.get("results", Path("results") / name)),
        data_dir=Path(content["data_dir"]) if "data_dir" in content else None,
    )


def _check_keys(whose: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{whose} keys are {', '.join(known)}{hint}. Received: {key!r}")


def _multiplied(table: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The runs of a table whose values may be lists, seeds slowest, models fastest.

    Yields:
        The place of the run's seed in the list of seeds, and the run's values.
    """
    lists = {key: value if isinstance(value, list) else [value] for key, value in table.items()}
    seeds, models = lists.pop("seed", [0]), lists.pop("model", [None])
    for number, seed in enumerate(seeds):
        for *values, model in itertools.product(*lists.values(), models):
            named = {} if model is None else {"model": model}
            yield number, {**dict(zip(lists, values, strict=True)), **named, "seed": seed}


def _run(values: Mapping[str, Any], mean_field: Mapping[str, Any], folder: Path) -> Run:
    """A run from one table of plain values, and those for networks with learned times."""
    from mf_zoo import applications, data
    from mf_zoo.training.runner import stage_values

    fields = [field.name for field in dataclasses.fields(Recipe)]
    recipe_keys = [key for key in fields if key not in ("name", "description")]
    _check_keys("A run's", {**mean_field, **values}, (*_RUN_KEYS, *recipe_keys))
    if "model" not in values:
        raise ValueError(f"A run must name a `model`. Received: {dict(values)}")
    if not isinstance(values["model"], str):
        raise ValueError(f"`model` must be a string. Received: model={values['model']!r}")
    builder = applications.get(values["model"])
    if "quadrature" in inspect.signature(builder).parameters:
        values = {**mean_field, **values}
    for key in ("dataset", "recipe"):
        if not isinstance(values.get(key, ""), str):
            raise ValueError(f"`{key}` must be a string. Received: {key}={values[key]!r}")
    for key, least in (
        ("seed", 0),
        ("holdout", 0),
        ("limit", 1),
        ("eval_every", 1),
        ("threads", 1),
    ):
        value = values.get(key, least)
        if type(value) is not int or value < least:
            raise ValueError(
                f"`{key}` must be a whole number from {least}. Received: {key}={value!r}"
            )
    if not isinstance(values.get("on_device", False), bool):
        raise ValueError(f"`on_device` must be true or false. Received: {values['on_device']!r}")
    dataset = values.get("dataset", "cifar10")
    data.class_names(dataset)
    base = values.get("recipe", "paper")
    if base.endswith(".toml"):
        base = str(folder / base)
    # TOML has no null.
    changes = {
        key: None if values[key] == "none" else values[key] for key in recipe_keys if key in values
    }
    recipe = get_recipe(base, **changes)
    stage_values(builder, values["model"], recipe)
    # Said once: a value that the recipe has anyhow, or that follows from the epochs, is none.
    default, scaled = get_recipe(base), get_recipe(base, epochs=recipe.epochs)
    overrides = {
        key: getattr(recipe, key)
        for key in recipe_keys
        if getattr(recipe, key) != getattr(default if key == "epochs" else scaled, key)
    }
    return Run(
        recipe=recipe,
        base=base,
        overrides=overrides,
        dataset=dataset,
        **{
            key: values[key]
            for key in _RUN_KEYS
            if key in values and key not in ("dataset", "recipe")
        },
    )


# --- Running ---------------------------------------------------------------------------------


def run_campaign(
    campaign: Campaign,
    command: Sequence[str],
    *,
    time_limit: float | None = None,
    show: Callable[[Sequence[Progress]], None] = lambda progress: None,
) -> list[Progress]:
    """Runs what is left of a campaign.

    Each run is a process of its own, with its output in a log file beside its folder: one that
    fails takes no other along. A run that is finished is left alone, one that was begun goes on
    after its last checkpoint. The same holds after the driver itself was killed: its children end
    with it (they must end when their standard input does, see `mf_zoo.cli.child`), and a run
    folder can be written to by one process at a time.

    After every run that ends, and at the end, `results` gets `runs.csv` (a line for each run) and
    for each finished run its history and times. A run that `runs.csv` says is finished is not run
    again even if its folder is gone.

    Args:
        campaign: What to run.
        command: What starts `mf-zoo`; the arguments of `train` are added.
        time_limit: After so many seconds runs under way are asked to stop. They lose the epoch
            they are in.
        show: Called with the state of all runs, whenever it may have changed.

    Returns:
        The state of each run.

    Raises:
        UserError: If another driver is at work in `campaign.output`, or that or the results cannot
            be written.
    """
    with files.locked(campaign.output):
        return _Driver(campaign, command, time_limit, show).drive()


class _Driver:
    def __init__(self, campaign, command, time_limit, show):
        self.campaign = campaign
        self.command = command
        self.deadline = None if time_limit is None else time.monotonic() + time_limit
        self.show = show
        self.stored = {row["run"]: row for row in files.read_rows(campaign.results / RUNS)}
        self.progress = {run.name: Progress(run.name, run.recipe.epochs) for run in campaign.runs}
        self.children: dict[str, subprocess.Popen] = {}

    def folder(self, run: Run) -> Path:
        return self.campaign.output / run.name

    def drive(self) -> list[Progress]:
        for run in self.campaign.runs:
            self._look(run)
        self._gather()
        try:
            while not self._past_deadline():
                self._start()
                self.show([*self.progress.values()])
                states = {progress.state for progress in self.progress.values()}
                if not self.children and not states & {"waiting", "busy"}:
                    break
                time.sleep(_POLL_SECONDS)
                self._poll()
        finally:
            self._stop()
            self._gather()
            self.show([*self.progress.values()])
        return [*self.progress.values()]

    def _past_deadline(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def _look(self, run: Run) -> None:
        """Reads from the run's folder, or else from the stored results, how far it is."""
        progress, folder = self.progress[run.name], self.folder(run)
        stored = self.stored.get(run.name, {})
        try:
            result, config = (
                files.read_json(folder / runs.RESULT),
                files.read_json(folder / runs.CONFIG),
            )
        except UserError as error:
            progress.state, progress.reason = "failed", str(error)
            return
        if result is None and config is None and stored.get("state") == "finished":
            progress.state, progress.epoch = "finished", int(stored["epochs_done"])
            progress.error = float(stored["test_error"])
            return
        rows = _whole_rows(folder / runs.HISTORY)
        if rows:
            progress.epoch = int(rows[-1]["epoch"])
            progress.seconds = float(rows[-1]["seconds"])
            errors = [row["test_error"] for row in rows if row["test_error"]]
            progress.error = float(errors[-1]) if errors else None
        if result is not None:
            differing = run.differences(config or {})
            progress.state = "failed" if differing else "finished"
            progress.error = result["test_error"]
            if differing:
                progress.reason = (
                    f"{folder} holds a run with another {', '.join(differing)}: move it away"
                )

    def _start(self) -> None:
        """Starts waiting runs, in order, until there are enough."""
        for run in self.campaign.runs:
            if len(self.children) >= self.campaign.jobs:
                return
            progress, folder = self.progress[run.name], self.folder(run)
            if progress.state not in ("waiting", "busy"):
                continue
            if files.is_locked(folder):
                progress.state = "busy"
                continue
            resume = (folder / runs.CONFIG).exists()
            arguments = run.arguments(folder, self.campaign.data_dir, resume)
            with files.writing(self._log(run)):
                log = open(self._log(run), "ab")  # noqa: SIM115
            with log:
                self.children[run.name] = subprocess.Popen(
                    [*self.command, *arguments],
                    # Its end tells the child, by whatever death, that we are gone.
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environment(),
                    # Ctrl-C is for us, who then ask the children to stop.
                    process_group=0,
                )
            progress.state = "running"

    def _log(self, run: Run) -> Path:
        return self.campaign.output / f"{run.name}.log"

    def _environment(self) -> dict[str, str]:
        # The same network is compiled once for all seeds.
        ours = {"JAX_COMPILATION_CACHE_DIR": str((self.campaign.output / "jax-cache").resolve())}
        if self.campaign.jobs > 1:
            # Else the first process takes most of an accelerator's memory.
            ours["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
            ours["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
        return {**ours, **os.environ}

    def _poll(self) -> None:
        """Looks at the runs under way and takes leave of those that have ended."""
        ended = False
        for run in self.campaign.runs:
            child = self.children.get(run.name)
            if child is None:
                continue
            code = child.poll()
            self._look(run)
            if code is None:
                continue
            ended = True
            self._close(run.name)
            progress = self.progress[run.name]
            if progress.state != "finished":
                progress.state = "failed"
                progress.reason = progress.reason or self._reason(run, code)
        if ended:
            self._gather()

    def _reason(self, run: Run, code: int) -> str:
        lines = self._log(run).read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return f"{how}: {last.strip()} (see {self._log(run)})"

    def _close(self, name: str) -> None:
        child = self.children.pop(name)
        with contextlib.suppress(OSError):
            child.stdin.close()

    def _stop(self) -> None:
        """Asks the children to stop, and makes those that do not."""
        for child in self.children.values():
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGTERM)
        until = time.monotonic() + _GRACE_SECONDS
        for run in self.campaign.runs:
            child = self.children.get(run.name)
            if child is None:
                continue
            try:
                child.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            self._close(run.name)
            self._look(run)
            if self.progress[run.name].state == "running":
                self.progress[run.name].state = "stopped"

    def _gather(self) -> None:
        """Writes the results of all runs."""
        results = self.campaign.results
        with files.writing(results):
            results.mkdir(parents=True, exist_ok=True)
        rows = []
        for run in self.campaign.runs:
            progress, stored = self.progress[run.name], self.stored.get(run.name)
            folder = self.folder(run)
            if progress.state == "finished" and not (folder / runs.RESULT).exists():
                rows.append(stored)  # its folder is gone
                continue
            row = _row(run, folder, progress)
            rows.append(row)
            if progress.state == "finished" and row != stored:
                _copy_histories(folder, results, run.name)
            self.stored[run.name] = row
        ours = set(self.progress)
        rows += [row for name, row in self.stored.items() if name not in ours]
        files.write_rows(results / RUNS, rows, COLUMNS)


def _whole_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a history, but for one that is being written or was cut short."""
    return [row for row in files.read_rows(path) if row.get("order_swaps")]


def _row(run: Run, folder: Path, progress: Progress) -> dict[str, str]:
    """A line of `runs.csv`; a run that is not finished has no error and no loss."""
    config = files.read_json(folder / runs.CONFIG) or {}
    result = files.read_json(folder / runs.RESULT) if progress.state == "finished" else None
    history = _whole_rows(folder / runs.HISTORY)
    seconds = sum(float(row["seconds"]) for row in history)
    images = config.get("train_images", 0) * len(history)
    values: dict[str, Any] = {
        "run": run.name,
        # What it will be when somebody looks at it; a driver may be killed at any moment.
        "state": "begun" if progress.state in ("running", "stopped", "busy") else progress.state,
        "model": run.model,
        "dataset": run.dataset,
        "recipe": run.recipe.name,
        "overrides": " ".join(_texts(run.overrides)),
        "seed": run.seed,
        "evaluated_on": config.get("evaluated_on"),
        "epochs": run.recipe.epochs,
        "epochs_done": len(history),
        "order_swaps": sum(int(row["order_swaps"]) for row in history),
        "train_images": config.get("train_images"),
        "batch_size": run.recipe.batch_size,
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


def _copy_histories(folder: Path, results: Path, name: str) -> None:
    """Copies the history of a run, and its times as one line for each epoch that changed any."""
    history = files.read_rows(folder / runs.HISTORY)
    for row in history:
        for key in ("learning_rate", "loss", "accuracy", "test_loss", "test_error"):
            row[key] = f"{float(row[key]):.6g}" if row[key] else ""
    files.write_rows(results / f"{name}.{runs.HISTORY}", history, list(history[0]))
    epochs: dict[int, dict[str, str]] = {}
    for row in files.read_rows(folder / runs.TIMES):
        times = epochs.setdefault(int(row["epoch"]), {})
        times[f"{row['stage']}/{row['particle']}"] = f"{float(row['time']):.4f}"
    kept: list[dict[str, Any]] = []
    for epoch, times in epochs.items():
        if not kept or {**kept[-1], **times} != kept[-1]:
            kept.append({"epoch": epoch, **times})
    if kept:
        files.write_rows(results / f"{name}.{runs.TIMES}", kept, list(kept[0]))
