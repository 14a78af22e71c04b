"""The campaign file: a queue of runs as TOML."""

import dataclasses
import difflib
import itertools
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mf_zoo.files import read_toml
from mf_zoo.training import ladder, recipes
from mf_zoo.training.recipes import Recipe, get_recipe
from mf_zoo.training.settings import Machine, RunSettings, flags

_KEYS = ("name", "jobs", "output", "results", "data_dir", "defaults", "mean_field", "runs")
_MOST_RUNS = 10_000


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a campaign.

    Attributes:
        settings: What `mf_zoo.training.train` is given.
        machine: The same.
        base: Name or file of the recipe that the overrides change.
        overrides: The values in which the recipe differs from that one, by name.
        trunk: Name of the run of the campaign that it grows from, where its recipe has a ladder.
    """

    settings: RunSettings
    machine: Machine
    base: str
    overrides: Mapping[str, Any]
    trunk: str | None = None

    @property
    def name(self) -> str:
        """Name of the run's folder. It says all settings, so that no other run can have it."""
        settings, default = self.settings, RunSettings("default")
        parts = [settings.model, settings.dataset, settings.recipe.name, *texts(self.overrides)]
        # `eval_every` changes no weights.
        for key in ("holdout", "limit", "weights", "freeze", "until", "trunk"):
            value = getattr(settings, key)
            if value != getattr(default, key):
                parts.append(f"{key}={'+'.join(value) if key == 'freeze' else value}")
        name = "-".join([*parts, f"seed{settings.seed}"])
        return re.sub("[/*:]", "_", name)

    def command(self, output: Path, data_dir: Path | None) -> str:
        """The command that does what the run does, for people to read and to repeat."""
        settings = self.settings
        found = ["mf-zoo", "train", settings.model, "--recipe", self.base]
        for text in texts(self.overrides):
            found += ["--set", text]
        for record in (settings, self.machine):
            for key, field in flags(type(record)).items():
                value = getattr(record, key)
                flag = f"--{key.replace('_', '-')}"
                if value == field.default and key not in ("dataset", "seed"):
                    continue
                if value is True:
                    found.append(flag)
                else:
                    values = value if isinstance(value, tuple) else [value]
                    found += [word for one in values for word in (flag, str(one))]
        if data_dir is not None:
            found += ["--data-dir", str(data_dir)]
        return shlex.join([*found, "--output", str(output)])

    def differences(self, config: Mapping[str, Any]) -> list[str]:
        """What a run folder's `config.json` says otherwise than this run."""
        try:
            there = RunSettings.from_dict(config).to_dict()
        except ValueError:
            return ["settings"]
        here = self.settings.to_dict()
        if self.settings.weights is not None:
            # There they are a path and a digest, and the network is as the weights want it.
            for found in (here, there):
                del found["weights"], found["weights_sha256"]
                for name in recipes.fields("stage", "network"):
                    del found["recipe"][name]
        for found in (here, there):
            # There a path and a digest: a run that grows looks at its trunk when it begins.
            del found["trunk"], found["trunk_sha256"]
            del found["recipe"]["description"]  # words, which another version may choose otherwise
        return [key for key, value in here.items() if there[key] != value]


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


def texts(values: Mapping[str, Any]) -> list[str]:
    """`key=value` as `mf-zoo train --set` reads it."""
    words = {True: "true", False: "false", None: "none"}
    return [
        f"{key}={words[value] if value is None or isinstance(value, bool) else value}"
        for key, value in values.items()
    ]


def load_campaign(path: str | Path) -> Campaign:
    """Reads a campaign file.

    Its keys, `runs` being the only one that must be there:

    - `name` (default: the file's stem), `jobs` (1), `output` (`runs/NAME`), `results`
      (`results/NAME`), `data_dir`;
    - `[defaults]`: values for all runs;
    - `[mean_field]`: values for all runs of networks with learned times, before those of a run;
    - `[[runs]]`: the fields of `RunSettings` (`recipe` is a name, or a file beside the campaign's)
      and of `Machine`, and any value of the recipe (`"none"` for none). Lists are multiplied out:
      seeds vary slowest, models fastest, the others in between in the order in which they are
      listed. (`freeze` takes one pattern, or a list in a list.)

    The first seeds of all tables come first, then the second ones, and so on. So a network that is
    listed beside its twin is trained beside it, and what a time limit leaves is whole.

    A run whose recipe has a ladder grows from runs that are added before it, one for each of the
    ladder's networks, and shared by all runs that have the same beginning.

    Args:
        path: The TOML file.

    Returns:
        The `Campaign`.

    Raises:
        ValueError: For anything that cannot be run as it is written, or is there twice.
        UserError: For a model that does not have the settings it is given.
        OSError: If the file cannot be read.

    Example:

    ```toml
    jobs = 2

    [defaults]
    recipe = "cosine"
    on_device = true

    [[runs]]
    model = ["MFResNet20", "ResNet20"]
    seed = [0, 1, 2]
    ```
    """
    path = Path(path)
    content = read_toml(path)
    _check_keys("A campaign file's", content, _KEYS)
    defaults, mean_field = content.get("defaults", {}), content.get("mean_field", {})
    for key, values in {"defaults": defaults, "mean_field": mean_field}.items():
        if not isinstance(values, dict):
            raise ValueError(f"`{key}` must be a table of values. Received: {values!r}")
    tables = content.get("runs", [])
    if not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
        raise ValueError(f"A campaign file must have tables [[runs]]. Received: {path}")
    counts = [
        math.prod(len(value) for value in {**defaults, **table}.values() if isinstance(value, list))
        for table in tables
    ]
    if 0 in counts:
        raise ValueError(f"A list of values must not be empty. Received: {path} with an empty one")
    count = sum(counts)
    if count > _MOST_RUNS:
        raise ValueError(f"A campaign may have {_MOST_RUNS:,} runs. Received: {count:,} in {path}")
    numbered = [
        (number, _run(values, mean_field, path.parent))
        for table in tables
        for number, values in _multiplied({**defaults, **table})
    ]
    found = [run for _, run in sorted(numbered, key=lambda pair: pair[0])]
    names = [run.name for run in found]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(f"A campaign must have each run once. Received: {twice[0]!r} twice")
    found = _with_trunks(found)
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
    from mf_zoo.training.assembly import builder_values

    settings_keys, machine_keys, recipe_keys = (
        ["model", *flags(RunSettings)],
        [*flags(Machine)],
        recipes.fields(),
    )
    known = (*settings_keys, "recipe", *machine_keys, *recipe_keys)
    _check_keys("A run's", {**mean_field, **values}, known)
    if "model" not in values:
        raise ValueError(f"A run must name a `model`. Received: {dict(values)}")
    if not isinstance(values["model"], str):
        raise ValueError(f"`model` must be a string. Received: model={values['model']!r}")
    model = applications.network(values["model"])
    if model.mean_field:
        values = {**mean_field, **values}
    base = values.get("recipe", "paper")
    if not isinstance(base, str):
        raise ValueError(f"`recipe` must be a string. Received: recipe={base!r}")
    if base.endswith(".toml"):
        base = str(folder / base)
    # TOML has no null.
    changes = {
        key: None if values[key] == "none" else values[key] for key in recipe_keys if key in values
    }
    recipe = get_recipe(base, **changes)
    builder_values(model.name, recipe)
    settings = RunSettings(
        **{**{key: values[key] for key in settings_keys if key in values}, "model": model.name},
        recipe=recipe,
    )
    data.get(settings.dataset)
    return Run(
        settings=settings,
        machine=Machine(**{key: values[key] for key in machine_keys if key in values}),
        base=base,
        overrides=_overrides(base, recipe),
    )


def _with_trunks(found: Sequence[Run]) -> list[Run]:
    """The runs, each after those that it grows from, which are there once."""
    runs: dict[str, Run] = {}
    for run in found:
        trunk = None
        for rung in ladder.rungs(run.settings):
            overrides = _overrides(run.base, rung.recipe)
            branch = dataclasses.replace(run, settings=rung, overrides=overrides, trunk=trunk)
            trunk = branch.name
            runs.setdefault(trunk, branch)
        # One that is a trunk as well may be there already.
        runs.setdefault(run.name, dataclasses.replace(run, trunk=trunk))
    return list(runs.values())


def _overrides(base: str, recipe: Recipe) -> dict[str, Any]:
    """In what a recipe differs from the one it is made of.

    Said once: a value that the recipe has anyhow, or that follows from the epochs, is none.
    """
    default, scaled = get_recipe(base), get_recipe(base, epochs=recipe.epochs)
    return {
        key: getattr(recipe, key)
        for key in recipes.fields()
        if getattr(recipe, key) != getattr(default if key == "epochs" else scaled, key)
    }
