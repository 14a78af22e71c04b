"""What the subcommands share."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mf_zoo.errors import UserError, user_errors
from mf_zoo.files import read_json, sha256
from mf_zoo.training import runs
from mf_zoo.training.runs import CONFIG, WEIGHTS
from mf_zoo.training.settings import flags

if TYPE_CHECKING:
    import keras


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--data-dir`."""
    parser.add_argument(
        "--data-dir", type=Path, metavar="D", help="folder of an .npz or tensorflow-datasets"
    )


def add_record_arguments(
    parser: argparse.ArgumentParser, *records: type, only: Sequence[str] | None = None
) -> None:
    """Adds a flag for each field of records of settings.

    Args:
        parser: The parser.
        *records: Dataclasses whose fields are made by `mf_zoo.training.settings`.
        only: Names of the fields; `None` for all.
    """
    for name, field in flags(*records).items():
        if only is not None and name not in only:
            continue
        about = {"help": field.metadata["help"], "default": None}
        if field.default is False:
            about |= {"action": "store_true"}
        elif field.default == ():
            about |= {"action": "append", "metavar": field.metadata["metavar"]}
        else:
            about |= {"metavar": field.metadata["metavar"]}
            if field.metadata["least"] is not None:
                about["type"] = int
        parser.add_argument(f"--{name.replace('_', '-')}", **about)


def given(options: argparse.Namespace, *records: type) -> dict[str, Any]:
    """The values of those fields of records that the user has given on the command line."""
    found = {name: getattr(options, name, None) for name in flags(*records)}
    return {name: value for name, value in found.items() if value is not None}


def add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds `--weights` and the `--dataset` of a file of weights."""
    parser.add_argument(
        "--weights",
        metavar="W",
        help="registered name, .weights.h5 file or run folder (default: the model's registered "
        "weights, of several those of cifar10)",
    )
    parser.add_argument(
        "--dataset",
        help="of a .weights.h5 file: cifar10 (default) or cifar100; "
        "or whose registered weights to take",
    )


def default_weights(model: str, dataset: str | None) -> str:
    """Name of the weights to take where none is named.

    The only ones (trained on the dataset, if that is named), else the dataset's main ones, else
    those of CIFAR-10.
    """
    from mf_zoo import weights as registry

    names = [record.name for record in registry.records(model=model, dataset=dataset)]
    return names[0] if len(names) == 1 else dataset or "cifar10"


def load_trained(
    model: str,
    weights: str,
    dataset: str | None,
    activation: str | None,
    quadrature: str | None = None,
    horizon: float | None = None,
    integrator: str | None = None,
) -> "tuple[keras.Model, str]":
    """Builds a network with trained weights.

    Args:
        model: Name of the network.
        weights: Name of registered weights, a `.weights.h5` file, or the folder of a finished run.
        dataset: Name of the dataset that says how many classes there are; `None` for the one that
            the weights were trained on, or CIFAR-10 for a file, which does not say.
        activation: Of the scores; `None` for logits.
        quadrature, horizon, integrator: Of the mean-field stages; `None` for those of the run or
            the record.

    Returns:
        The model and the name of the dataset.

    Raises:
        UserError: For anything that does not fit.
    """
    from mf_zoo import applications, data
    from mf_zoo import weights as registry

    source = weights
    given = {"quadrature": quadrature, "horizon": horizon, "integrator": integrator}
    stages: dict[str, Any] = {**given, "reorder": None}
    others: dict[str, Any] = {}
    folder = Path(weights)
    with user_errors():
        is_run = folder.is_dir()
    if is_run:
        config = read_json(folder / CONFIG, "config")
        if config is None or not (folder / WEIGHTS).exists():
            raise UserError(f"`--weights` must be a finished run if a folder. Received: {folder}")
        weights = str(folder / WEIGHTS)
        dataset = dataset or config["dataset"]
        others["normalization"] = runs.normalization(config)
        if shortcut := config["recipe"].get("shortcut"):
            others["shortcut"] = shortcut
        for key, value in stages.items():
            stages[key] = config["recipe"].get(key) if value is None else value
    with user_errors():
        network = applications.network(model)
        stages = {key: value for key, value in stages.items() if value is not None}
        if not network.mean_field:
            for key, value in given.items():
                if value is not None:
                    raise UserError(f"{model} has no learned times and takes no `--{key}`.")
            stages = {}
        records = {record.name: record for record in registry.records(model=model)}
        record = records.get(source)
        dataset = dataset or (record.dataset if record else "cifar10")
        classes = data.get(dataset).classes
        if record and record.classes != classes:
            raise UserError(
                f"The {source!r} weights of {model} have {record.classes} classes and cannot be "
                f"measured on {dataset}, which has {classes}."
            )
        model = network.builder(
            weights=weights,
            classes=classes,
            classifier_activation=activation,
            dataset=dataset,
            **stages,
            **others,
        )
        return model, dataset


def weights_digest(model: str, weights: str) -> str:
    """The SHA-256 digest, in hex, of the weights that `load_trained` loads.

    Args:
        model, weights: As there.

    Returns:
        The digest; of weights in shards that of all of them.
    """
    from mf_zoo import weights as registry

    with user_errors():
        if Path(weights).is_dir():
            return sha256(Path(weights) / WEIGHTS)
        if Path(weights).is_file():
            return sha256(*registry.parts(registry.check_file(weights)))
        return registry.get(model, weights).sha256
