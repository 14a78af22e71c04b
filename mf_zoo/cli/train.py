"""`mf-zoo train`, `recipes` and `publish`: from a recipe to registered weights."""

import argparse
import json
from pathlib import Path
from typing import Any

from mf_zoo.cli.common import add_data_arguments, add_start_arguments, input_errors, one_line
from mf_zoo.training.recipes import RECIPES, Recipe, get_recipe, parse_override
from mf_zoo.training.runs import CONFIG, WEIGHTS, RunError, read_json

# Flags for the recipe's values that are changed most; --set reaches the others.
_RECIPE_FLAGS = (
    "epochs",
    "batch_size",
    "learning_rate",
    "schedule",
    "weight_decay",
    "label_smoothing",
    "dtype_policy",
    "time_learning_rate_multiplier",
    "noise_temperature",
    "quadrature",
    "horizon",
    "initial_times",
)


def add_parser(commands: Any) -> None:
    """Adds the subcommands."""
    _add_train(commands)
    _add_recipes(commands)
    publish = commands.add_parser(
        "publish", help="copy the weights of a finished run into the registry"
    )
    publish.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    publish.add_argument("--name", help="of the weights (default: the dataset's)")
    publish.add_argument(
        "--directory", type=Path, metavar="DIR", help="registry (default: the package's)"
    )
    publish.add_argument(
        "--overwrite", action="store_true", help="replace weights registered under this name"
    )
    publish.set_defaults(run=_publish)


def _add_train(commands):
    parser = commands.add_parser(
        "train",
        help="train a model on CIFAR",
        description="Train a model and write a run folder. With --resume only --output is "
        "needed: the settings are those the run was started with.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="such as MFResNet20")
    add_data_arguments(parser)
    add_start_arguments(parser)
    parser.add_argument("--recipe", help=f"{', '.join(RECIPES)} or a .toml file (default: paper)")
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="run folder")
    parser.add_argument("--resume", action="store_true", help="go on after the last checkpoint")
    parser.add_argument(
        "--eval-every", type=int, metavar="N", help="evaluate every N epochs (default: 1)"
    )
    parser.add_argument(
        "--holdout",
        type=int,
        metavar="N",
        help="evaluate on the last N training images, not trained on, instead of the test images",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="use N images of each split")
    parser.add_argument(
        "--on-device",
        action="store_true",
        default=None,
        help="keep the images on the device and run whole epochs in one dispatch (JAX)",
    )
    parser.add_argument(
        "--distribute",
        choices=("data",),
        help="divide each batch among all devices, of several processes too",
    )
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard logs")
    parser.add_argument(
        "--verbose", type=int, choices=(0, 1, 2), help="silent, progress bar, line per epoch"
    )
    group = parser.add_argument_group("values of the recipe")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any value; may be repeated. See: mf-zoo recipes",
    )
    for key in _RECIPE_FLAGS:
        group.add_argument(f"--{key.replace('_', '-')}", metavar="VALUE")
    parser.set_defaults(run=_train)


def _add_recipes(commands):
    parser = commands.add_parser("recipes", help="list the recipes and all their values")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_recipes)


def _recipe(options: argparse.Namespace, base: str | Recipe) -> Recipe:
    texts = list(options.set)
    for key in _RECIPE_FLAGS:
        value = getattr(options, key)
        if value is not None:
            texts.append(f"{key}={value}")
    with input_errors():
        return get_recipe(base, **dict(parse_override(text) for text in texts))


def _train(options: argparse.Namespace):
    defaults = {
        "model": None,
        "dataset": "cifar10",
        "data_dir": None,
        "seed": 0,
        "eval_every": 1,
        "holdout": 0,
        "limit": None,
        "threads": None,
        "on_device": False,
        "distribute": None,
        "weights": None,
        "freeze": [],
    }
    base = "paper"
    started = read_json(options.output / CONFIG) if options.resume else None
    if started is not None:
        try:
            defaults = {key: started[key] for key in defaults}
            base = Recipe(**started["recipe"])
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"{options.output / CONFIG} must be the config of a run of this version. "
                f"Received: {one_line(error)}"
            ) from error
    given = {
        key: default if getattr(options, key) is None else getattr(options, key)
        for key, default in defaults.items()
    }
    if given["model"] is None:
        raise RunError(
            "A model must be named, such as MFResNet20"
            + (f"; {options.output} holds no run to resume" if options.resume else "")
        )
    recipe = _recipe(options, options.recipe or base)

    from mf_zoo.training.runner import train

    result = train(
        **given,
        recipe=recipe,
        output=options.output,
        resume=options.resume,
        tensorboard=options.tensorboard,
        verbose="auto" if options.verbose is None else options.verbose,
        command=options.command_line,
    )
    if given["distribute"]:
        from mf_zoo.training.distribution import is_main

        if not is_main():
            return
    print(
        f"{result['model']} on {result['dataset']}, {result['evaluated_on']}: "
        f"error {result['test_error']:.2f} %, loss {result['test_loss']:.4f} "
        f"after {result['epochs']} epochs; {options.output / WEIGHTS}"
    )


def _recipes(options: argparse.Namespace):
    recipes = [recipe.to_dict() for recipe in RECIPES.values()]
    if options.json:
        print(json.dumps(recipes, indent=2))
        return
    for recipe in recipes:
        print(f"{recipe['name']}: {recipe['description']}")
    print()
    width = max(map(len, recipes[0]))
    for key in recipes[0]:
        if key not in ("name", "description"):
            print(f"{key:{width}}" + "".join(f"  {recipe[key]!s:>10}" for recipe in recipes))


def _publish(options: argparse.Namespace):
    with input_errors():
        from mf_zoo import weights

        record = weights.publish(
            options.run_dir, options.name, options.directory, overwrite=options.overwrite
        )
    print(f"published {record}")
