"""What a run starts from: random weights, those of another depth, or a trunk that it grows from."""

import warnings

import keras
import numpy as np

from mf_zoo import applications, depth
from mf_zoo.applications import loading
from mf_zoo.applications.architectures import Architecture
from mf_zoo.applications.builders import is_file
from mf_zoo.errors import user_errors
from mf_zoo.training import assembly, folder
from mf_zoo.training.distribution import Group
from mf_zoo.training.ladder import Trunk
from mf_zoo.training.settings import RunSettings
from mf_zoo.training.statistics import recalibrate


def start(
    settings: RunSettings, images: np.ndarray, group: Group
) -> tuple[keras.Model, str | None]:
    """The network that a run without a trunk begins with, not compiled.

    Args:
        settings: The settings of the run. Weights of another depth are refined or coarsened.
        images: Training images, on which statistics are measured then.
        group: Who trains.

    Returns:
        The network, and a line that says what was made of its weights, if anything was.

    Raises:
        ValueError: If the weights are of another family.
    """
    model, weights = settings.model, settings.weights
    with warnings.catch_warnings():
        # What the builder warns of is done here.
        warnings.filterwarnings("ignore", ".*: estimate the statistics of BatchNormalization anew")
        network = assembly.build_network(
            model,
            settings.recipe,
            weights=weights,
            freeze=settings.freeze,
            dataset=settings.dataset,
        )
    if weights is None:
        return network, None
    there, here = _held(weights, model).particles, applications.architecture(model).particles
    if there == here:
        return network, None
    measured = recalibrate(network, images, settings, group)
    return network, f"{weights} has {there} particles, made the {here} of {model}; {measured}"


def _held(weights: str, model: str) -> Architecture:
    """The network that weights are of."""
    if is_file(weights):
        return depth.architecture_of(weights, applications.architecture(model))
    return loading.registered(model, weights)[1].architecture


def grow(
    trunk: Trunk, settings: RunSettings, images: np.ndarray, group: Group
) -> tuple[keras.Model, str]:
    """The network that a run grows to, compiled, with the optimizer's state of its trunk.

    From the same trunk and settings it is the same: noise is drawn from the seed and the epoch.

    Args:
        trunk: The trunk. If it has the run's model, that is the network, to the bit.
        settings: The settings of the run.
        images: Training images, on which statistics are measured.
        group: Who trains.

    Returns:
        The network, and a line that says what it is.

    Raises:
        UserError: If the network cannot be refined as the recipe says.
    """
    before, model, recipe = trunk.config["model"], settings.model, settings.recipe
    where = f"after epoch {trunk.epoch} of {recipe.epochs} of {trunk.folder}"
    network = folder.load_checkpoint(trunk.folder, trunk.state)
    if before == model:
        return network, f"{model} goes on {where}"
    particles = applications.architecture(model).particles
    with user_errors():
        network = depth.refine(
            network,
            particles,
            recipe.growth_rule,
            optimizer=True,
            noise=recipe.growth_noise,
            seed=int(np.random.SeedSequence([settings.seed, trunk.epoch]).generate_state(1)[0]),
        )
    network.name = model.lower()
    if recipe.growth_state == "reset":
        _forget_momenta(network.optimizer)
    measured = recalibrate(network, images, settings, group)
    return network, f"{before} {where} grows to {model}; {measured}"


def _forget_momenta(optimizer: keras.optimizers.Optimizer) -> None:
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    for momentum in getattr(optimizer, "momentums", []):
        momentum.assign(keras.ops.zeros_like(momentum))
