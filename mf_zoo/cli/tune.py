"""`mf-zoo tune`: searches the recipe that trains a model best."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from mf_zoo.cli.common import add_data_arguments, add_record_arguments, given
from mf_zoo.errors import UserError, user_errors
from mf_zoo.files import read_json
from mf_zoo.training.recipes import RECIPES, get_recipe, parse_override
from mf_zoo.training.settings import Machine, flags
from mf_zoo.tuning.settings import SEARCH, SearchSettings
from mf_zoo.tuning.space import SPACE, default_search, parse_search


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
    add_record_arguments(parser, SearchSettings, Machine, only=(*flags(SearchSettings), "threads"))
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="search folder")
    parser.add_argument("--resume", action="store_true", help="resume after a kill")
    parser.add_argument("--epochs", type=int, metavar="N", help="of a trial, at most")
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
    started = read_json(options.output / SEARCH, "search") if options.resume else None
    settings = _settings(options, started)
    stored = started or {}
    data_dir = stored.get("data_dir") if options.data_dir is None else options.data_dir
    timeout = options.worker_timeout
    timeout = stored.get("worker_timeout", 60.0) if timeout is None else timeout

    result = _tuning("search").tune(
        settings,
        options.output,
        data_dir=data_dir,
        threads=options.threads,
        resume=options.resume,
        chief=options.chief,
        allow_remote=options.allow_remote,
        worker_timeout=timeout,
        verbose=options.verbose,
        command=options.command_line,
    )
    print(
        f"{result['model']} on {result['dataset']}, {result['evaluated_on']}: error "
        f"{result['val_error']:.2f} % after {result['epochs']} epochs, trial "
        f"{result['best_trial']} of {result['trials']}; {options.output / result['recipe']}"
    )


def _settings(options: argparse.Namespace, started: dict[str, Any] | None) -> SearchSettings:
    """The settings of the command line, on top of those of a search that is resumed."""
    values = given(options, SearchSettings)
    if options.models:
        values["models"] = tuple(options.models)
    elif started is None:
        raise UserError(
            "A model must be named, such as MFResNet20"
            + (f"; {options.output} holds no search to resume" if options.resume else "")
        )
    with user_errors():
        changed = dict(parse_override(text) for text in options.set or [])
        if options.epochs is not None:
            changed.setdefault("epochs", options.epochs)
        if options.search is not None:
            values["search"] = parse_search(options.search)
            for name in changed:
                if name in values["search"]:
                    raise UserError(f"A value is set or searched, not both. Received: {name!r}")
    if started is None:
        with user_errors():
            recipe = get_recipe(options.recipe or "quick", **changed)
            if options.search is None and changed.keys() & SPACE.keys():
                names = default_search(values["models"], "weights" in values)
                values["search"] = [name for name in names if name not in changed]
            return SearchSettings(recipe=recipe, **values)
    settings = SearchSettings.from_dict(started)
    with user_errors():
        recipe = get_recipe(options.recipe or settings.recipe, **changed)
        return settings.replace(recipe=recipe, **values)


def _work(options: argparse.Namespace) -> None:
    for name in (*flags(SearchSettings), "models", "recipe", "set", "search", "epochs", "chief"):
        value = getattr(options, name)
        if value is not None and value != []:
            flag = "" if name == "models" else f"--{name.replace('_', '-')} "
            raise UserError(f"A worker takes the settings of its chief. Received: {flag}{value}")
    _tuning("chief").work(
        options.output,
        worker=options.worker,
        tuner_id=options.tuner_id,
        data_dir=options.data_dir,
        threads=options.threads,
        verbose=options.verbose,
    )


def _tuning(module: str) -> Any:
    """A module that needs keras-tuner."""
    import importlib

    try:
        return importlib.import_module(f"mf_zoo.tuning.{module}")
    except ModuleNotFoundError as error:
        raise UserError(
            f"Tuning needs keras-tuner: pip install 'keras-tuner[bayesian]'. Received: {error}"
        ) from error
