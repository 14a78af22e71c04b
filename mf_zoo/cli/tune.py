"""`mf-zoo tune`: searches the recipe that trains a model best."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from mf_zoo.cli.common import add_data_arguments, add_record_arguments
from mf_zoo.errors import UserError
from mf_zoo.files import read_json
from mf_zoo.training.recipes import RECIPES, Recipe, get_recipe, parse_override
from mf_zoo.training.settings import Machine, RunSettings
from mf_zoo.tuning.space import SEARCH, SPACE, TUNERS, parse_search


def add_parser(commands: Any) -> None:
    """Adds the subcommand."""
    parser = commands.add_parser(
        "tune",
        help="search the recipe that trains a model best",
        description="Search the values of a recipe, on images held out of the training set, and "
        "write a folder with the trials and the best recipe. With --resume or --worker only "
        "--output is needed: the settings are those the search was started with.",
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="one, or several to choose from")
    add_data_arguments(parser)
    add_record_arguments(
        parser, RunSettings, Machine, only=("dataset", "weights", "freeze", "threads")
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="its folder")
    parser.add_argument("--resume", action="store_true", help="go on where a kill ended it")
    parser.add_argument("--tuner", choices=TUNERS, help="default: hyperband")
    parser.add_argument("--max-trials", type=int, metavar="N")
    parser.add_argument("--epochs", type=int, metavar="N", help="of a trial, at most")
    parser.add_argument(
        "--holdout",
        type=int,
        metavar="N",
        help="choose by the last N training images, not trained on (default: 5000)",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use N training images")
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument("--recipe", help=f"{', '.join(RECIPES)} or a .toml file (default: quick)")
    parser.add_argument(
        "--set", action="append", metavar="KEY=VALUE", help="a value of the recipe; not searched"
    )
    parser.add_argument(
        "--search",
        action="append",
        metavar="KEY[=LOW:HIGH|=A,B,C]",
        help=f"a value to search; may be repeated (default: all of {', '.join(SPACE)} that apply)",
    )
    parser.add_argument("--verbose", type=int, choices=(0, 1, 2), default=0, help="of a trial")
    group = parser.add_argument_group(
        "several processes",
        "A chief hands out the trials, workers run them; all see the folder. The port is neither "
        "encrypted nor protected: whoever reaches it can take part. To other machines rather "
        "give it through a tunnel, such as ssh -L.",
    )
    group.add_argument("--chief", metavar="HOST:PORT", help="be the chief, on a loopback address")
    group.add_argument(
        "--allow-remote",
        action="store_true",
        help="let the chief's address be one that other machines reach",
    )
    group.add_argument(
        "--worker-timeout",
        type=float,
        metavar="SECONDS",
        help="after so long without a sign of life another worker gets the trial (default: 60)",
    )
    group.add_argument("--worker", metavar="HOST:PORT", help="be a worker of the chief there")
    group.add_argument("--tuner-id", metavar="ID", help="name of the worker, unlike all others")
    parser.set_defaults(run=_tune)


def how_to_resume(options: argparse.Namespace) -> str:
    """What to tell a user who has interrupted the command."""
    if not (options.output / SEARCH).exists():
        return ""
    mode = "--resume"
    if options.worker is not None:
        mode = f"--worker {options.worker}"
    elif options.chief is not None:
        mode += f" --chief {options.chief}"
    return f"; resume with: mf-zoo tune {mode} --output {shlex.quote(str(options.output))}"


def _tune(options: argparse.Namespace) -> None:
    if options.worker is not None:
        _work(options)
        return
    if options.tuner_id is not None:
        raise UserError(f"`--tuner-id` names a worker (--worker). Received: {options.tuner_id!r}")
    if options.allow_remote and options.chief is None:
        raise UserError("`--allow-remote` is for a chief (--chief). Received: no --chief")
    started = read_json(options.output / SEARCH) if options.resume else None
    defaults: dict[str, Any] = {
        "dataset": "cifar10",
        "data_dir": None,
        "tuner": "hyperband",
        "max_trials": None,
        "holdout": 5000,
        "limit": None,
        "seed": 0,
        "worker_timeout": 60.0,
        "weights": None,
        "freeze": [],
    }
    models, base, search = options.models, options.recipe or "quick", options.search
    values = dict(_read(parse_override, text) for text in options.set or [])
    if started is not None:
        try:
            defaults = {key: started[key] for key in defaults}
            models = models or started["models"]
            base = options.recipe or Recipe(**started["recipe"])
            search = search or started["search"]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{options.output / SEARCH} must be the settings of a search of this version. "
                f"Received: {error!r}"
            ) from error
    if not models:
        raise UserError(
            "A model must be named, such as MFResNet20"
            + (f"; {options.output} holds no search to resume" if options.resume else "")
        )
    given = {
        key: default if getattr(options, key) is None else getattr(options, key)
        for key, default in defaults.items()
    }
    if options.epochs is not None:
        values.setdefault("epochs", options.epochs)
    recipe = _read(lambda name: get_recipe(name, **values), base)
    if search is None and values.keys() & SPACE.keys():
        search = _default_search(models, given["weights"], values)
    space = None if search is None else _read(parse_search, search)
    for name in values:
        if space is not None and name in space and started is None:
            raise UserError(f"A value is set or searched, not both. Received: {name!r}")

    tune = _tuning("search").tune
    result = tune(
        models,
        **given,
        output=options.output,
        recipe=recipe,
        search=space,
        threads=options.threads,
        resume=options.resume,
        chief=options.chief,
        allow_remote=options.allow_remote,
        verbose=options.verbose,
        command=options.command_line,
    )
    print(
        f"{result['model']} on {result['dataset']}, {result['evaluated_on']}: error "
        f"{result['val_error']:.2f} % after {result['epochs']} epochs, trial "
        f"{result['best_trial']} of {result['trials']}; {options.output / result['recipe']}"
    )


def _work(options: argparse.Namespace) -> None:
    names = ("chief", "tuner", "max_trials", "epochs", "holdout", "limit", "seed", "recipe")
    for name in (*names, "weights", "freeze"):
        if getattr(options, name) is not None:
            raise UserError(
                "A worker takes the settings of its chief. "
                f"Received: --{name.replace('_', '-')} {getattr(options, name)}"
            )
    _tuning("search").work(
        options.output,
        worker=options.worker,
        tuner_id=options.tuner_id,
        data_dir=options.data_dir,
        threads=options.threads,
        verbose=options.verbose,
    )


def _default_search(models: list[str], weights: str | None, values: dict[str, Any]) -> list[str]:
    """The names that are searched by default, but for those that were set."""
    kind = _tuning("hypermodel").MeanFieldHyperModel
    hypermodel = _read(lambda names: kind(names, weights=weights), models)
    return [name for name in hypermodel.space if name not in values]


def _read(function: Any, *arguments: Any) -> Any:
    """Calls a function whose complaints are about what the user wrote."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise UserError(str(error)) from error


def _tuning(module: str) -> Any:
    """A module that needs keras-tuner."""
    import importlib

    try:
        return importlib.import_module(f"mf_zoo.tuning.{module}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"Tuning needs keras-tuner: pip install 'keras-tuner[bayesian]'. Received: {error}"
        ) from error
