"""What a run starts from: random weights, those of another depth, or a trunk that it grows from."""

from pathlib import Path
from typing import Any

import keras
import numpy as np

from mf_zoo import applications
from mf_zoo import weights as registry
from mf_zoo.applications.builders import is_file
from mf_zoo.errors import user_errors
from mf_zoo.training import assembly, folder, pretrained
from mf_zoo.training.ladder import Trunk
from mf_zoo.training.settings import RunSettings

# Training images, the first ones and not augmented, that a grown network's BatchNormalization
# statistics are measured on.
RECALIBRATION_IMAGES = 5_000


def grow(trunk: Trunk, settings: RunSettings, images: np.ndarray) -> tuple[keras.Model, str]:
    """The network that a run grows to, compiled, with the optimizer's state of its trunk.

    The same from the same trunk and settings: noise is drawn from the seed and the epoch.

    Args:
        trunk: The trunk. If it has the run's model, that is the network, to the bit.
        settings: The settings of the run.
        images: Training images, to measure statistics of BatchNormalization on.

    Returns:
        The network, and a line that says what it is.
    """
    network = folder.load_checkpoint(trunk.folder, trunk.state)
    before, model, recipe = trunk.config["model"], settings.model, settings.recipe
    where = f"epoch {trunk.epoch} of {trunk.folder}"
    if before == model:
        return network, f"starting with {model} after {where}"
    from mf_zoo import depth

    seed = int(np.random.SeedSequence([settings.seed, trunk.epoch]).generate_state(1)[0])
    with user_errors(), assembly.dtype_policy(recipe.dtype_policy):
        network = depth.refine(
            network,
            model,
            recipe.growth_rule,
            noise=recipe.growth_noise,
            seed=seed,
            optimizer=True,
        )
    if recipe.growth_state == "reset":
        _forget_momenta(network.optimizer)
    count = _recalibrate(network, images)
    return network, f"grown from {before} after {where} to {model}, {_measured(count)}"


def start(settings: RunSettings, images: np.ndarray) -> tuple[keras.Model, str | None]:
    """The network that a run begins with, not compiled.

    Args:
        settings: The settings of the run, without a trunk.
        images: Training images, to measure statistics of BatchNormalization on.

    Returns:
        The network, and a line that says what was made of its weights, if anything was.

    Raises:
        ValueError: If the weights are of another family.
    """
    arguments: dict[str, Any] = {"freeze": settings.freeze, "dataset": settings.dataset}
    model, recipe, weights = settings.model, settings.recipe, settings.weights
    source = None if weights is None or not is_file(weights) else _source(weights, settings)
    if source is None:
        return assembly.build_network(model, recipe, weights=weights, **arguments), None
    from mf_zoo import depth

    network = depth.resize(source, model)
    pretrained.freeze_layers(network, settings.freeze)
    count = _recalibrate(network, images)
    return network, (
        f"{Path(weights).name} holds {_particles(source)} particles: made {_particles(network)}, "
        f"those of {model}, {_measured(count)}"
    )


def _source(weights: str, settings: RunSettings) -> keras.Model | None:
    """The network of a file of another depth; `None` for a file of the model, or of no family."""
    from mf_zoo import depth

    network = applications.network(settings.model)
    try:
        found = depth.architecture_of(weights, network.architecture)
    except ValueError:
        return None  # To load it says what is wrong.
    if found.particles == network.architecture.particles:
        return None
    builder = next(
        (
            other.builder
            for other in applications.networks().values()
            if other.mean_field == network.mean_field and other.architecture.blocks == found.blocks
        ),
        None,
    )


def _particles(network: keras.Model) -> str:
    from mf_zoo.layers import stages

    return " + ".join(str(stage.num_particles) for stage in stages(network))


def _recalibrate(network: keras.Model, images: np.ndarray) -> int:
    from mf_zoo import depth

    images = images[:RECALIBRATION_IMAGES]
    depth.recalibrate(network, images)
    return len(images)


def _measured(images: int) -> str:
    return f"statistics of BatchNormalization measured on {images:,} training images"


def _forget_momenta(optimizer: keras.optimizers.Optimizer) -> None:
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    for momentum in getattr(optimizer, "momentums", []):
        momentum.assign(keras.ops.zeros_like(momentum))
