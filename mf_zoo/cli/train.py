"""`mf-zoo train`, `recipes` and `publish`: from a recipe to registered weights."""

import argparse
import json
from pathlib import Path
from typing import Any

from mf_zoo.cli.common import add_data_arguments, add_record_arguments, given
from mf_zoo.errors import UserError, user_errors
from mf_zoo.files import read_json
from mf_zoo.training import recipes
from mf_zoo.training.recipes import RECIPES, Recipe, get_recipe, parse_override
from mf_zoo.training.runs import CONFIG, WEIGHTS
from mf_zoo.training.settings import Machine, RunSettings, flags

# Flags that go with --dry-run alone.
_DRY_RUN_NUMBERS = {
    "input_size": "pixels a side (default: the dataset's)",
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
        help="train a network",
        description="Train a network and write a run folder. With --resume only --output is "
        "needed: the settings are those the run was started with. With --dry-run only a model is "
        "needed, and nothing is trained. With --ladder the network grows from others of less "
        "depth, which are trained first.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="such as MFResNet20")
    add_data_arguments(parser)
    add_record_arguments(parser, RunSettings, Machine)
    parser.add_argument("--recipe", help=f"{', '.join(RECIPES)} or a .toml file (default: paper)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="run folder")
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint")
    parser.add_argument(
        "--settings", type=Path, metavar="FILE", help="all settings from a file of a campaign"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard logs")
    parser.add_argument(
        "--verbose", type=int, choices=(0, 1, 2), help="silent, progress bar, line per epoch"
    )
    group = parser.add_argument_group("values of the recipe", "See: mf-zoo recipes")
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any value; may be repeated",
    )
    for key in recipes.fields():
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
    for key in recipes.fields():
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
    started = read_json(options.output / CONFIG, "config") if options.resume else None
    if options.settings is not None:
        settings, machine, command = _from_file(options)
    else:
        settings, machine = _settings(options, started)
        command = options.command_line
    data_dir = options.data_dir
    if data_dir is None and started is not None:
        data_dir = started.get("data_dir")

    from mf_zoo.training.runner import train

    result = train(
        settings,
        options.output,
        data_dir=data_dir,
        machine=machine,
        resume=options.resume,
        tensorboard=options.tensorboard,
        verbose="auto" if options.verbose is None else options.verbose,
        command=command,
    )
    if machine.distribute:
        from mf_zoo.devices import is_main

        if not is_main():
            return
    grown = "".join(f"{rung['model']} to epoch {rung['epochs']}, " for rung in result["grown_from"])
    print(
        f"{result['model']} on {result['dataset']}, {result['evaluated_on']}: "
        f"error {result['test_error']:.2f} %, loss {result['test_loss']:.4f} "
        f"after {result['epochs']} epochs"
        + (f" (grown from {grown.removesuffix(', ')})" if grown else "")
        + f"; {options.output / WEIGHTS}"
    )


def _settings(
    options: argparse.Namespace, started: dict[str, Any] | None
) -> tuple[RunSettings, Machine]:
    """The settings of the command line, on top of those of a run that is resumed."""
    values = given(options, RunSettings)
    if options.model is not None:
        values["model"] = options.model
    if started is None:
        if options.model is None:
            raise UserError(
                "A model must be named, such as MFResNet20"
                + (f"; {options.output} holds no run to resume" if options.resume else "")
            )
        with user_errors():
            settings = RunSettings(recipe=_recipe(options, options.recipe or "paper"), **values)
            return settings, Machine(**given(options, Machine))
    settings, machine = RunSettings.from_dict(started), Machine.from_dict(started)
    with user_errors():
        recipe = _recipe(options, options.recipe or settings.recipe)
        return (
            settings.replace(recipe=recipe, **values),
            machine.replace(**given(options, Machine)),
        )


def _from_file(options: argparse.Namespace) -> tuple[RunSettings, Machine, str]:
    """Settings that a campaign has written for one of its runs, and the command to record."""
    names = [*flags(RunSettings, Machine), *recipes.fields(), "model", "recipe", "set"]
    for name in names:
        if getattr(options, name):
            options.usage_error(f"--{name.replace('_', '-')} does not go with --settings")
    content = read_json(options.settings, "settings")
    if content is None:
        raise UserError(f"`--settings` must be a file. Received: {options.settings}")
    return (
        RunSettings.from_dict(content["settings"]),
        Machine.from_dict(content["machine"]),
        content["command"],
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
    numbers = {
        key: getattr(options, key) for key in _DRY_RUN_NUMBERS if getattr(options, key) is not None
    }
    settings, machine = _settings(options, None)

    from mf_zoo.training.dry_run import dry_run

    found = dry_run(settings, machine=machine, **numbers)
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
    print(f"work           {found['training_multiply_adds']:.3g} multiply-adds")
    for rung in found["rungs"] if len(found["rungs"]) > 1 else []:
        print(
            f"  {rung['model']:13}{rung['epochs']:,} epochs, {rung['steps']:,} steps, "
            f"{rung['multiply_adds']:.3g} multiply-adds"
        )
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
