"""A network as its builder was asked for it, with weights where there are some."""

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras

from mf_zoo import weights as registry
from mf_zoo.applications.architectures import Architecture
from mf_zoo.applications.assembly import assemble
from mf_zoo.applications.builders import is_file
from mf_zoo.applications.inputs import resolve


def build(
    architecture: Architecture,
    mean_field: bool,
    model: str,
    *,
    weights: str | os.PathLike | None,
    input_shape: tuple[int | None, ...] | None,
    pooling: str | None,
    classes: int | None,
    name: str | None,
    dataset: str | None,
    normalization: tuple[Sequence[float], Sequence[float]] | None,
    quadrature: Any = None,
    horizon: float | None = None,
    initial_times: Any = "grid",
    reorder: bool | None = None,
    integrator: Any = None,
    remat: bool = False,
    **top: Any,
) -> keras.Model:
    """Makes a network; the arguments are those of the builders.

    Args:
        architecture: The network.
        mean_field: Whether its times are learned.
        model: Its name in the registry.
        **top: Further arguments of `mf_zoo.applications.assembly.assemble`.

    Returns:
        A `keras.Model`.
    """
    if pooling not in (None, "avg", "max"):
        raise ValueError(f'`pooling` must be None, "avg" or "max". Received: pooling={pooling!r}')
    record = None
    if weights is not None and not is_file(weights):
        record = registry.get(model, weights)
        quadrature = record.quadrature if quadrature is None else quadrature
        horizon = record.horizon if horizon is None else horizon
        reorder = record.reorder if reorder is None else reorder
        integrator = record.integrator if integrator is None else integrator
    channels_first = keras.config.image_data_format() == "channels_first"
    inputs = resolve(
        architecture,
        record,
        input_shape=input_shape,
        classes=classes,
        dataset=dataset,
        normalization=normalization,
        channels_first=channels_first,
    )
    arguments = {
        "name": model.lower() if name is None else name,
        "normalization": inputs.normalization,
        "quadrature": "backward" if quadrature is None else quadrature,
        "horizon": horizon,
        "initial_times": initial_times,
        "reorder": True if reorder is None else reorder,
        "integrator": "euler" if integrator is None else integrator,
        "train_times": mean_field,
        "remat": remat,
    }
    network = assemble(
        architecture,
        input_shape=inputs.shape,
        pooling=pooling,
        classes=inputs.classes,
        **top,
        **arguments,
    )
    if record is not None:
        # Weights load into any size of image.
        shape = inputs.shape[0], None, None
        shape = shape if channels_first else (None, None, inputs.shape[-1])
        _load_registered(
            network,
            record,
            lambda: assemble(architecture, input_shape=shape, classes=record.classes, **arguments),
        )
    elif weights is not None:
        registry.load(network, weights)
    return network


def _load_registered(network: keras.Model, record: Any, build: Callable[[], keras.Model]) -> None:
    """Puts registered weights into a network; a classifier of another size starts afresh.

    Args:
        network: The network to fill.
        record: `mf_zoo.weights.WeightRecord` of the weights.
        build: Makes the network with the classifier that the file was saved with.
    """
    path = registry.path(record)
    head = next((layer for layer in network.layers if layer.name == "predictions"), None)
    if head is not None and head.units == record.classes:
        registry.load(network, path)
        return
    source = build()
    registry.load(source, path)
    for layer in network.layers:
        if layer is not head and layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())
    if head is not None:
        warnings.warn(
            f"The {record.name!r} weights of {record.model} have {record.classes} classes: the "
            f"body is loaded and the classifier for {head.units} classes starts afresh.",
            stacklevel=4,
        )
