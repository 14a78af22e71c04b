"""`mf-zoo train`, `recipes` and `publish`: from a recipe to registered weights."""

import argparse
import json
from pathlib import Path
from typing import Any

from mf_zoo.cli.common import add_data_arguments, add_start_arguments
from mf_zoo.errors import UserError, one_line, user_errors
from mf_zoo.files import read_json
from mf_zoo.training.recipes import RECIPES, Recipe, get_recipe, parse_override
from mf_zoo.training.runs import CONFIG, WEIGHTS

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

# Flags that go with --dry-run alone.
_DRY_RUN_NUMBERS = {
    "input_size": "pixels a side (default: 32)",
    "images": "training images (default: the dataset's)",
    "classes": "classes (default: the dataset's)",
    "devices": "devices that share a batch (default: 1)",
}


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
    publish.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="of stored kernels; float16 only if the test error stays the same to 0.02 points, "
        "measured on the images in --data-dir",
    )
    publish.add_argument(
        "--data-dir", type=Path, metavar="D", help="folder of an .npz or tensorflow-datasets"
    )
    publish.add_argument(
        "--max-shard-size",
        type=int,
        metavar="BYTES",
        help="no file is larger, weights that are go into several (default: 90 MB)",
    )
    publish.set_defaults(run=_publish)


def _add_train(commands):
    parser = commands.add_parser(
        "train",
        help="train a model on CIFAR",
        description="Train a model and write a run folder. With --resume only --output is "
        "needed: the settings are those the run was started with. With --dry-run only a model is "
        "needed, and nothing is trained.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="such as MFResNet20")
    add_data_arguments(parser)
    add_start_arguments(parser)
    parser.add_argument("--recipe", help=f"{', '.join(RECIPES)} or a .toml file (default: paper)")
    parser.add_argument("--seed", type=int, help="default: 0")
    parser.add_argument("--output", type=Path, metavar="DIR", help="run folder")
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
    group = parser.add_argument_group("what it would take")
    group.add_argument(
        "--dry-run", action="store_true", help="print parameters, work, steps and memory"
    )
    for flag, text in _DRY_RUN_NUMBERS.items():
        group.add_argument(f"--{flag.replace('_', '-')}", type=int, metavar="N", help=text)
    group.add_argument("--json", action="store_true", default=None, help="print JSON")
    parser.set_defaults(run=_train, usage_error=parser.error)


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
    with user_errors():
        return get_recipe(base, **dict(parse_override(text) for text in texts))


def _train(options: argparse.Namespace):
    if options.dry_run:
        _dry_run(options)
        return
    for flag in (*_DRY_RUN_NUMBERS, "json"):
        if getattr(options, flag) is not None:
            options.usage_error(f"--{flag.replace('_', '-')} goes with --dry-run")
    if options.output is None:
        options.usage_error("the following arguments are required: --output")
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
            raise UserError(
                f"{options.output / CONFIG} must be the config of a run of this version. "
                f"Received: {one_line(error)}"
            ) from error
    given = {
        key: default if getattr(options, key) is None else getattr(options, key)
        for key, default in defaults.items()
    }
    if given["model"] is None:
        raise UserError(
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


def _dry_run(options: argparse.Namespace):
    if options.model is None:
        raise UserError("A model must be named, such as MFResNet20")
    if options.resume:
        raise UserError("A dry run is of a training from its start and takes no `--resume`")
    if options.freeze is not None:
        raise UserError(
            f"A dry run counts all layers as trained. Received: --freeze {options.freeze[0]}"
        )
    keys = (*_DRY_RUN_NUMBERS, "dataset", "holdout", "limit", "on_device")
    given = {key: getattr(options, key) for key in keys if getattr(options, key) is not None}
    recipe = _recipe(options, options.recipe or "paper")

    from mf_zoo.training.dry_run import dry_run

    found = dry_run(options.model, recipe=recipe, **given)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    parameters, memory = found["parameters"], found["memory"]
    shape = " x ".join(map(str, found["input_shape"]))
    print(f"{found['model']}, {found['dtype_policy']} on {found['backend']}; nothing is trained")
    print(f"input          {shape}, {found['classes']:,} classes")
    print(f"parameters     {parameters['trained']:,} trained, {parameters['others']:,} others")
    print(f"multiply-adds  {found['multiply_adds']:,} for an image")
    shared = f", {found['batch_per_device']:,} on each of {found['devices']} devices"
    print(f"batch          {found['batch_size']:,}{shared if found['devices'] > 1 else ''}")
    print(f"epoch          {found['images']:,} images, {found['steps_per_epoch']:,} steps")
    print(f"training       {found['epochs']:,} epochs, {found['steps']:,} steps")
    print("memory of each device, at least, in bytes")
    for part, size in memory.items():
        print(f"  {part.replace('_', ' '):13}{size:>18,}")


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
    from mf_zoo import training, weights

    def evaluate(file: Path) -> training.Evaluation:
        return training.evaluate_weights(options.run_dir, file, data_dir=options.data_dir)

    if options.dtype != "float32" and options.data_dir is None:
        raise UserError(
            f"`--dtype {options.dtype}` needs `--data-dir`, to measure that the test error stays "
            "the same. Received: none"
        )
    size = options.max_shard_size
    with user_errors():
        record = weights.publish(
            options.run_dir,
            options.name,
            options.directory,
            overwrite=options.overwrite,
            dtype=options.dtype,
            evaluate=evaluate,
            max_shard_size=weights.MAX_SHARD_SIZE if size is None else size,
        )
    print(f"published {record}")
