"""The `mf-zoo` command."""

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from mf_zoo import __version__, demo
from mf_zoo.training.recipes import RECIPES, Recipe, get_recipe, parse_override
from mf_zoo.training.runs import CONFIG, STATE, WEIGHTS, RunError, read_json

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


class _Terminated(KeyboardInterrupt):
    """SIGTERM."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the `mf-zoo` command.

    Args:
        arguments: The command line without the program's name; `sys.argv` by default.

    Returns:
        The exit code: 0; 2 for bad usage or input (one line on standard error says what);
        130 or 143 after SIGINT or SIGTERM. Anything else is a traceback and 1.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    options.command_line = shlex.join(["mf-zoo", *arguments])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with _sigterm_as_interrupt():
            code = options.run(options) or 0
            sys.stdout.flush()
            return code
    except RunError as error:
        print(f"mf-zoo: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output went away; nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt as error:
        print(f"\nmf-zoo: interrupted{_how_to_resume(options)}", file=sys.stderr)
        return 143 if isinstance(error, _Terminated) else 130


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


@contextlib.contextmanager
def _sigterm_as_interrupt():
    def terminate(number, frame):
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # Not the main thread, where signals do not arrive.
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _how_to_resume(options: argparse.Namespace) -> str:
    folder = getattr(options, "output", None)
    if folder is None or not (folder / CONFIG).exists():
        return ""
    state = read_json(folder / STATE) or {"epoch": 0}
    return (
        f" after epoch {state['epoch']}; go on with: "
        f"mf-zoo train --resume --output {shlex.quote(str(folder))}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mf-zoo", description="Residual networks trained in the mean-field view of depth."
    )
    parser.add_argument("--version", action="version", version=f"mf-zoo {__version__}")
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_evaluate(commands)
    _add_recipes(commands)
    publish = commands.add_parser(
        "publish", help="copy the weights of a finished run into the registry"
    )
    publish.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    publish.set_defaults(run=_publish)
    parse_demo = commands.add_parser("demo", help="pretrained weights at work on real images")
    demo.add_arguments(parse_demo)
    parse_demo.set_defaults(run=demo.run)
    return parser


def _add_data(parser: argparse.ArgumentParser):
    parser.add_argument("--dataset", help="cifar10 (default) or cifar100")
    parser.add_argument(
        "--data-dir", type=Path, metavar="D", help="folder of an .npz or tensorflow-datasets"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="limit the backend's threads")


def _add_train(commands):
    parser = commands.add_parser(
        "train",
        help="train a model on CIFAR",
        description="Train a model and write a run folder. With --resume only --output is "
        "needed: the settings are those the run was started with.",
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help="such as MFResNet20")
    _add_data(parser)
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


def _add_evaluate(commands):
    parser = commands.add_parser("evaluate", help="measure a trained model")
    parser.add_argument("model", metavar="MODEL", help="such as MFResNet20")
    parser.add_argument(
        "--weights",
        required=True,
        metavar="W",
        help="registered name, .weights.h5 file or run folder",
    )
    _add_data(parser)
    parser.add_argument("--split", default="test", help="test (default), train, train[45000:] ...")
    parser.add_argument("--limit", type=int, metavar="N", help="use the first N images")
    parser.add_argument("--batch-size", type=int, default=500, metavar="N")
    parser.add_argument("--quadrature", help="rule that the weights were trained with")
    parser.add_argument("--horizon", type=float, help="horizon they were trained with")
    parser.add_argument(
        "--label-smoothing", type=float, default=0.0, metavar="S", help="of the reported loss"
    )
    parser.add_argument(
        "--predictions", type=Path, metavar="FILE", help="write a CSV row per image"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_evaluate)


def _add_recipes(commands):
    parser = commands.add_parser("recipes", help="list the recipes and all their values")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_recipes)


@contextlib.contextmanager
def _input_errors():
    """Complaints about what the user asked for end the command with one line and code 2."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise RunError(str(error)) from error


def _recipe(options: argparse.Namespace, base: str | Recipe) -> Recipe:
    texts = list(options.set)
    for key in _RECIPE_FLAGS:
        value = getattr(options, key)
        if value is not None:
            texts.append(f"{key}={value}")
    with _input_errors():
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
                f"Received: {_one_line(error)}"
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
    print(
        f"{result['model']} on {result['dataset']}, {result['evaluated_on']}: "
        f"error {result['test_error']:.2f} %, loss {result['test_loss']:.4f} "
        f"after {result['epochs']} epochs; {options.output / WEIGHTS}"
    )


def _evaluate(options: argparse.Namespace):
    weights, dataset = options.weights, options.dataset or "cifar10"
    stages = {"quadrature": options.quadrature, "horizon": options.horizon}
    folder = Path(weights)
    if folder.is_dir():
        config = read_json(folder / CONFIG)
        if config is None or not (folder / WEIGHTS).exists():
            raise RunError(f"`--weights` must be a finished run if a folder. Received: {folder}")
        weights = str(folder / WEIGHTS)
        dataset = options.dataset or config["dataset"]
        for key in stages:
            stages[key] = config["recipe"][key] if stages[key] is None else stages[key]
    if options.batch_size < 1:
        raise RunError(f"`--batch-size` must be 1 or more. Received: {options.batch_size}")
    if not 0 <= options.label_smoothing < 1:
        raise RunError(
            f"`--label-smoothing` must be in [0, 1). Received: {options.label_smoothing}"
        )

    import inspect

    import keras

    from mf_zoo import applications, data
    from mf_zoo import weights as registry
    from mf_zoo.training import runs
    from mf_zoo.training.evaluation import evaluate

    if options.threads and not runs.limit_threads(options.threads):
        print(f"note: --threads has no effect on {keras.config.backend()}", file=sys.stderr)
    with _input_errors():
        builder = applications.get(options.model)
        names = data.class_names(dataset)
        known = inspect.signature(builder).parameters
        stages = {key: value for key, value in stages.items() if value is not None}
        for key in [key for key in stages if key not in known]:
            if getattr(options, key) is not None:
                raise RunError(f"{options.model} has no learned times and takes no `--{key}`.")
            del stages[key]
        for record in registry.records(model=options.model):
            if record.name == weights and record.classes != len(names):
                raise RunError(
                    f"The {weights!r} weights of {options.model} have {record.classes} classes "
                    f"and cannot be measured on {dataset}, which has {len(names)}."
                )
        model = builder(weights=weights, classes=len(names), classifier_activation=None, **stages)
        images, labels = data.load(dataset, options.split, data_dir=options.data_dir)
        images, labels = images[: options.limit], labels[: options.limit]
    scores = evaluate(
        model,
        images,
        labels,
        options.batch_size,
        from_logits=True,
        label_smoothing=options.label_smoothing,
    )
    if options.predictions is not None:
        with _input_errors():
            scores.write_predictions(options.predictions, labels, names)
    if options.json:
        about = {"model": options.model, "weights": options.weights, "dataset": dataset}
        about |= {"split": options.split, "backend": keras.config.backend()}
        print(json.dumps({**about, **scores.to_dict()}, indent=2))
        return
    print(f"{options.model}, weights {options.weights}, {dataset} {options.split}")
    print(f"images  {scores.images}")
    print(f"top-1   {scores.top1:.2f} % (error {scores.error:.2f} %)")
    print(f"top-5   {scores.top5:.2f} %")
    print(f"loss    {scores.loss:.4f}")
    print(f"NLL     {scores.nll:.4f}")
    print(f"ECE     {scores.ece:.2f} %")


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
    with _input_errors():
        from mf_zoo import weights

        record = weights.publish(options.run_dir)
    print(f"published {record}")


if __name__ == "__main__":
    sys.exit(main())
