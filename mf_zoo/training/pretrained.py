"""What a training starts from: pretrained weights, and layers that stay as they are."""

import fnmatch
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from mf_zoo import applications, files
from mf_zoo import weights as registry
from mf_zoo.applications.builders import is_file
from mf_zoo.applications.loading import registered
from mf_zoo.training.ladder import read_trunk
from mf_zoo.training.recipes import Recipe, fields
from mf_zoo.training.settings import RunSettings


def settings(weights: str | Path | None, freeze: str | Sequence[str]) -> dict[str, Any]:
    """The settings of a start as a run or a search stores them.

    Args:
        weights: Registered name, or a `.weights.h5` file or `.weights.json` index of shards; `None`
            for random weights.
        freeze: Names or patterns of layers.

    Returns:
        `weights` (of a file, its absolute path), `weights_sha256` (of a file, so that a change is
        noticed when the run is resumed; else `None`) and `freeze`.

    Raises:
        ValueError: If the file is missing or no weight file.
    """
    digest = None
    if weights is not None and is_file(weights):
        digest = files.sha256(*registry.parts(registry.check_file(weights)))
        weights = str(Path(weights).absolute())
    freeze = [freeze] if isinstance(freeze, str) else list(freeze)
    return {"weights": weights, "weights_sha256": digest, "freeze": freeze}


def with_network_of(weights: str | Path | None, model: str, recipe: Recipe) -> Recipe:
    """The recipe with the network's values of registered weights, where it is at its defaults.

    Args:
        weights: As in `settings`; a file does not say what it was trained with.
        model: Name of the model.
        recipe: The recipe.

    Returns:
        The `Recipe`.

    Raises:
        ValueError: If there are no weights of that name.
    """
    if weights is None or is_file(weights):
        return recipe
    parts = ("network", "stage") if applications.network(model).mean_field else ("network",)
    record, default = registered(model, weights)[0], Recipe(name="default")
    return recipe.replace(
        **{
            key: getattr(record, key)
            for key in fields(*parts)
            if hasattr(record, key) and getattr(recipe, key) == getattr(default, key)
        }
    )


def resolve(run: RunSettings, begun: Mapping[str, Any] | None = None) -> RunSettings:
    """The settings of a run with what follows from its weights filled in.

    Args:
        run: The settings.
        begun: The `config.json` of the run, if it has a checkpoint: then it can do without its
            trunk, should that be gone.

    Returns:
        The settings with the model's name as it is registered, the digests of a weight file and of
        the checkpoint of a trunk, and the network's values of registered weights where the recipe
        is at its defaults.

    Raises:
        ValueError: If there is no such model, or there are no such weights.
        UserError: If the run cannot grow from its trunk.
    """
    model, trunk = applications.network(run.model).name, {}
    if run.trunk is not None:
        if begun is not None and not Path(run.trunk).exists():
            digest = begun.get("trunk_sha256")
        else:
            digest = read_trunk(run.trunk, run).state["sha256"]
        trunk = {"trunk": Path(run.trunk).absolute(), "trunk_sha256": digest}
    return run.replace(
        model=model,
        **trunk,
        recipe=with_network_of(run.weights, run.model, run.recipe),
        **settings(run.weights, run.freeze),
    )


def freeze_layers(network: keras.Model, patterns: Sequence[str]) -> None:
    """Has layers not be trained.

    Args:
        network: The model.
        patterns: Names of its layers, or patterns as in a shell (`"stage*"`).

    Raises:
        ValueError: If a pattern fits no layer.
    """
    for pattern in patterns:
        found = [layer for layer in network.layers if fnmatch.fnmatch(layer.name, pattern)]
        if not found:
            raise ValueError(
                "`freeze` must name layers of the model, which are "
                f"{', '.join(layer.name for layer in network.layers)}. Received: {pattern!r}"
            )
        for layer in found:
            layer.trainable = False
