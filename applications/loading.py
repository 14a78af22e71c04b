"""Weights for a network: its own, or those of the same network at another depth or of its twin."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mf_zoo import weights as registry
from mf_zoo.applications.architectures import Architecture
from mf_zoo.applications.registry import network as find_network
from mf_zoo.weights.files import structure

if TYPE_CHECKING:
    import os

    import keras

    from mf_zoo.applications.registry import Network
    from mf_zoo.weights import WeightRecord

_TIMES = re.compile(r"(?:.*/)?mean_field_stage(?:_(\d+))?/vars/times")


def registered(model: str, weights: str) -> "tuple[WeightRecord, Network]":
    """Finds registered weights for a network.

    Args:
        model: Name of the network.
        weights: Name of the weights; or, of another network of the family, its name and theirs,
            `"MFResNet20:cifar10"`.

    Returns:
        The record, and the network that the weights are of.

    Raises:
        ValueError: If there are none, or that network is of another family.

    Example:

    >>> from mf_zoo.applications.loading import registered
    >>> record, source = registered("MFResNet56", "MFResNet20:cifar10")
    >>> record.dataset, source.name
    ('cifar10', 'MFResNet20')
    """
    name, separator, weights_name = weights.rpartition(":")
    if not separator:
        return registry.get(model, weights), find_network(model)
    source, target = find_network(name), find_network(model)
    if not source.architecture.is_depth_of(target.architecture):
        raise ValueError(
            f"`weights` must be those of {model} at another depth, or of its twin: "
            f"'NETWORK:NAME'. Received: {weights!r}, where {name} is of another family"
        )
    return registry.get(name, weights_name), source


def architecture_of(path: "str | os.PathLike", architecture: Architecture) -> Architecture:
    """What a weight file holds: a network at the depth that the file has.

    Args:
        path: A `.weights.h5` file, or the `.weights.json` index of shards.
        architecture: A network of the family.

    Returns:
        `architecture` itself, or the same with other numbers of particles. Whether the file fits
        it otherwise is seen when it is loaded.

    Raises:
        WeightFileError: If it is no whole weight file.

    Example:

    >>> path = mf_zoo.weights.path(mf_zoo.weights.get("MFResNet20", "cifar10"))
    >>> deeper = mf_zoo.applications.architecture("MFResNet56")
    >>> mf_zoo.depth.architecture_of(path, deeper).particles
    (3, 2, 2)
    """
    shapes = structure(registry.check_file(path))
    found = {
        int(match[1] or 0): shapes[place][0]
        for place in shapes
        if (match := _TIMES.fullmatch(place)) and len(shapes[place]) == 1
    }
    particles = tuple(found[number] for number in sorted(found))
    if len(particles) != len(architecture.particles) or particles == architecture.particles:
        return architecture
    return architecture.with_particles(particles)


def load(
    network: "keras.Model", path: str | Path, build: "Callable[[], keras.Model] | None"
) -> None:
    """Puts the weights of a file into a network.

    Args:
        network: The network to fill.
        path: The file.
        build: Makes the network that the file was saved from, if that is another one: its stages
            are refined or coarsened, and a classifier of another size is left alone.
    """
    if build is None:
        registry.load(network, path)
        return
    from mf_zoo.layers import MeanFieldStage, measures

    source = build()
    registry.load(source, path)
    for layer in network.layers:
        if not layer.weights:
            continue
        other = source.get_layer(layer.name)
        if isinstance(layer, MeanFieldStage):
            rule = "split" if layer.num_particles > other.num_particles else "merge"
            measures.transfer(other, layer, rule)
        elif layer.name != "predictions" or layer.units == other.units:
            layer.set_weights(other.get_weights())


def tell(message: str, stacklevel: int = 4) -> None:
    """Warns whoever called a builder."""
    warnings.warn(message, stacklevel=stacklevel)


def say_what_was_done(model: str, what: str, before: Architecture, after: Architecture) -> None:
    """Tells that a network has got the weights of another depth."""
    if before.particles == after.particles:
        return
    pairs = zip(before.particles, after.particles, strict=True)
    how = (
        "blocks are split into equal parts of their steps"
        if all(old <= new for old, new in pairs)
        else "neighbouring blocks are merged"
    )
    tell(
        f"{model} gets {what}: {how}, {before.particles} particles a stage become "
        f"{after.particles}. Nothing is trained at this depth yet: estimate the statistics of "
        "BatchNormalization anew by `mf_zoo.depth.recalibrate(model, batches)`, or train.",
        stacklevel=5,
    )
