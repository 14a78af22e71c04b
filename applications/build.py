"""A network as its builder was asked for it, with weights where there are some."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import keras

from mf_zoo import weights as registry
from mf_zoo.applications import loading
from mf_zoo.applications.architectures import Architecture
from mf_zoo.applications.assembly import assemble
from mf_zoo.applications.builders import is_file
from mf_zoo.applications.inputs import resolve
from mf_zoo.applications.registry import Network


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
    remat: bool | int | str = False,
    shortcut: str | None = None,
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
    record, held = None, None
    if weights is not None and not is_file(weights):
        record, held = loading.registered(model, weights)
        its_shortcut = record.shortcut or held.architecture.shortcut
        if shortcut not in (None, its_shortcut):
            raise ValueError(
                f"The registered weights {weights!r} are of {held.name} with "
                f"shortcut={its_shortcut!r}. Received: shortcut={shortcut!r}"
            )
        shortcut = its_shortcut
    if shortcut is not None:
        architecture = dataclasses.replace(architecture, shortcut=shortcut)
    source = Network(model, architecture, mean_field, None)
    plain = {"quadrature": "backward", "horizon": None, "reorder": True, "integrator": "euler"}
    asked = {"quadrature": quadrature, "horizon": horizon}
    asked |= {"reorder": reorder, "integrator": integrator}
    if weights is None:
        path = None
    elif record is None:
        path = weights
        source = dataclasses.replace(
            source, architecture=loading.architecture_of(path, architecture)
        )
    else:
        path = registry.path(record)
        source = dataclasses.replace(
            held, architecture=dataclasses.replace(held.architecture, shortcut=shortcut)
        )
    # What the weights were trained with, and what is asked for in their place.
    theirs = plain if record is None else {key: getattr(record, key) for key in plain}
    given = {key: value for key, value in asked.items() if value is not None}
    theirs |= {key: value for key, value in given.items() if source.mean_field}
    ours = {**theirs, **given} if mean_field else plain
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
        "normalization": inputs.normalization,
        "initial_times": initial_times,
        "remat": remat,
    }
    top |= {"pooling": pooling, "classes": inputs.classes}
    network = assemble(
        architecture,
        name=model.lower() if name is None else name,
        input_shape=inputs.shape,
        **ours,
        train_times=mean_field,
        **top,
        **arguments,
    )
    if path is None:
        return network
    if record is None:
        # A file was saved with the top that is asked for.
        shape, source_top = inputs.shape, {k: v for k, v in top.items() if k != "input_tensor"}
    else:
        # Weights load into any size of image.
        shape = (inputs.shape[0], None, None) if channels_first else (None, None, inputs.shape[-1])
        source_top = {"classes": record.classes}

    def build_source() -> keras.Model:
        return assemble(
            source.architecture,
            name=source.name.lower(),
            input_shape=shape,
            **theirs,
            train_times=source.mean_field,
            **source_top,
            **arguments,
        )

    head = next((layer for layer in network.layers if layer.name == "predictions"), None)
    fits = record is None or (head is not None and head.units == record.classes)
    same = source.architecture.particles == architecture.particles and ours == theirs
    same = same and (mean_field or not source.mean_field)  # a plain network takes no times
    loading.load(network, path, None if fits and same else build_source)
    if head is not None and not fits:
        loading.tell(
            f"The {record.name!r} weights of {record.model} have {record.classes} classes: the "
            f"body is loaded and the classifier for {head.units} classes starts afresh."
        )
    what = f"the {weights!r} weights" if record is None else f"{record.name!r} of {record.model}"
    loading.say_what_was_done(model, what, source.architecture, architecture)
    return network
