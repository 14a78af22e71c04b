"""Builders of networks with pretrained weights, in the convention of `keras.applications`."""

import inspect
import os
import warnings
from collections.abc import Callable
from typing import Any

import keras

from mf_zoo import weights as registry
from mf_zoo.applications.network import Architecture, network

_ENDINGS = (".h5", ".weights.json")  # of files of weights and of indices of their shards

_ARGUMENTS = """
    Args:
        include_top: Whether to end in global average pooling and a classifier.
        weights: `None` (random), a registered name such as `"cifar10"` (see
            `mf_zoo.weights.records()`), or the path of a `.weights.h5` file of this network
            (`.weights.json` where it is in shards).
            Registered weights also load into another number of `classes` or without the top:
            the body is then loaded and the head starts afresh.
        input_tensor: Keras tensor to use as images; `None` for a new input.
        input_shape: `(rows, cols, 3)`, or channels first where Keras is set so; rows and cols are
            pixels, at least 8, or `None`. Defaults to `(32, 32, 3)`.
        pooling: Without the top: `None` for a feature map, `"avg"` or `"max"` for a vector.
        classes: Number of classes; `None` for that of the registered weights, else 10.
        classifier_activation: Activation of the scores; `None` for logits.
        name: Name of the model; `None` for its own.
        remat: Whether the activations within a block are computed again in the backward pass
            instead of being kept: less memory for more work, see `mf_zoo.layers.MeanFieldStage`.
"""

_MEAN_FIELD_ARGUMENTS = """\
        quadrature: Quadrature rule of every `mf_zoo.layers.MeanFieldStage`; `None` for that of
            the registered weights, else `"backward"`.
        horizon: Horizon `T` of every stage; `None` for that of the registered weights, else the
            stage's number of particles.
        initial_times: `"grid"` or `"random"`.
        reorder: Whether blocks are applied in the order of their times, and not in that of storage;
            `None` for as the registered weights were trained, else `True`.
"""

_PREACTIVATION_ARGUMENT = """\
        preactivation: Whether BatchNormalization and ReLU come before the convolutions, as in the
            source; `False` for the post-activation variant, which has no registered weights.
"""

_REST = """
    Returns:
        A `keras.Model` from images `(batch, rows, cols, 3)`, uint8 or float, 0..255 (they are
        normalised inside), to float32 scores `(batch, classes)`, or to features.

    Raises:
        ValueError: For unknown weights, and arguments out of range.

    Source: {source}.

    Example:

    >>> model = mf_zoo.applications.{name}(weights=None)
    >>> model.predict(mf_zoo.data.sample("cifar10")[0]).shape
    (200, 10)
    """


def builder(
    architecture: Architecture, mean_field: bool, variant: Architecture | None = None
) -> Callable[..., keras.Model]:
    """Makes the builder of an architecture.

    Args:
        architecture: The network.
        mean_field: Whether its stages learn their times.
        variant: The network to build instead when the user passes `preactivation=False`, an
            argument that other builders do not have.

    Returns:
        A function with the signature of `keras.applications`, named and documented.
    """
    prefix = "MF" if mean_field else ""
    name = prefix + architecture.name
    parameters = list(inspect.signature(_build).parameters.values())[2:]
    optional = {"quadrature", "horizon", "initial_times", "reorder"} if not mean_field else set()
    optional |= {"preactivation"} if variant is None else set()
    signature = inspect.Signature(
        [parameter for parameter in parameters if parameter.name not in optional],
        return_annotation=keras.Model,
    )

    def build(*args: Any, **kwargs: Any) -> keras.Model:
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{name}{signature}: {error}") from None
        chosen = architecture
        if not arguments.pop("preactivation", True):
            weights = arguments.get("weights")
            if weights is not None and not is_file(weights):
                raise ValueError(
                    f"`weights` of the post-activation {name} must be None or a file: registered "
                    f"weights are those of `preactivation=True`. Received: weights={weights!r}"
                )
            chosen = variant
        return _build(chosen, mean_field, **arguments)

    build.__name__ = build.__qualname__ = name
    build.__module__ = "mf_zoo.applications"
    build.__signature__ = signature
    source = architecture.source
    if mean_field:
        particles = ", ".join(map(str, architecture.particles))
        summary = f"Mean-field {architecture.title} for CIFAR: stages of {particles} particles."
        source += "; Lu et al., *A Mean-field\n    Analysis of Deep ResNet and Beyond*, ICML 2020"
    else:
        summary = (
            f"{architecture.title[0].upper()}{architecture.title[1:]} for CIFAR: the plain twin of "
            f"`MF{architecture.name}`.\n\n    The same code with times fixed on the grid, so that "
            "every step size is 1."
        )
    build.__doc__ = (
        f"{summary}\n{_ARGUMENTS}"
        + (_MEAN_FIELD_ARGUMENTS if mean_field else "")
        + (_PREACTIVATION_ARGUMENT if variant is not None else "")
        + _REST.format(source=source, name=name)
    )
    return build


def _build(
    architecture: Architecture,
    mean_field: bool,
    include_top: bool = True,
    weights: str | os.PathLike | None = None,
    input_tensor: Any = None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int | None = None,
    classifier_activation: Any = "softmax",
    name: str | None = None,
    quadrature: Any = None,
    horizon: float | None = None,
    initial_times: Any = "grid",
    reorder: bool | None = None,
    preactivation: bool = True,
    remat: bool = False,
) -> keras.Model:
    # The signature of every builder is made of this one; `preactivation` has chosen already.
    if pooling not in (None, "avg", "max"):
        raise ValueError(f'`pooling` must be None, "avg" or "max". Received: pooling={pooling!r}')
    if classes is not None and not (isinstance(classes, int) and classes > 0):
        raise ValueError(f"`classes` must be a positive integer. Received: classes={classes!r}")
    zoo_name = ("MF" if mean_field else "") + architecture.name
    record = None
    if weights is not None and not is_file(weights):
        record = registry.get(zoo_name, weights)
        classes = record.classes if classes is None else classes
        quadrature = record.quadrature if quadrature is None else quadrature
        horizon = record.horizon if horizon is None else horizon
        reorder = record.reorder if reorder is None else reorder
    arguments = {
        "name": zoo_name.lower() if name is None else name,
        "quadrature": "backward" if quadrature is None else quadrature,
        "horizon": horizon,
        "initial_times": initial_times,
        "reorder": True if reorder is None else reorder,
        "train_times": mean_field,
        "remat": remat,
    }
    model = network(
        architecture,
        input_tensor=input_tensor,
        input_shape=_check_shape(input_shape),
        include_top=include_top,
        pooling=pooling,
        classes=10 if classes is None else classes,
        classifier_activation=classifier_activation,
        **arguments,
    )
    if record is not None:
        _load_registered(
            model,
            record,
            lambda: network(
                architecture, input_shape=_check_shape(None), classes=record.classes, **arguments
            ),
        )
    elif weights is not None:
        registry.load(model, weights)
    return model


def is_file(weights: str | os.PathLike) -> bool:
    """Whether `weights` is the path of a file, and not a registered name."""
    return isinstance(weights, os.PathLike) or os.path.sep in weights or weights.endswith(_ENDINGS)


def _check_shape(input_shape: tuple[int | None, ...] | None) -> tuple[int | None, ...]:
    channels_first = keras.config.image_data_format() == "channels_first"
    if input_shape is None:
        return (3, 32, 32) if channels_first else (32, 32, 3)
    input_shape = tuple(input_shape)
    channels = input_shape[0 if channels_first else -1] if len(input_shape) == 3 else None
    sides = input_shape[1:] if channels_first else input_shape[:-1]
    if channels != 3 or any(side is not None and side < 8 for side in sides):
        expected = "(3, rows, cols)" if channels_first else "(rows, cols, 3)"
        raise ValueError(
            f"`input_shape` must be {expected} with rows and cols None or at least 8. "
            f"Received: input_shape={input_shape}"
        )
    return input_shape


def _load_registered(model: keras.Model, record: Any, build: Callable[[], keras.Model]) -> None:
    """Puts registered weights into `model`; a head of another size starts afresh, and says so.

    Args:
        model: The network to fill.
        record: `mf_zoo.weights.WeightRecord` of the weights.
        build: Makes the network with the head that the file was saved with.
    """
    path = registry.path(record)
    head = next((layer for layer in model.layers if layer.name == "predictions"), None)
    if head is not None and head.units == record.classes:
        registry.load(model, path)
        return
    source = build()
    registry.load(source, path)
    for layer in model.layers:
        if layer is not head and layer.weights:
            layer.set_weights(source.get_layer(layer.name).get_weights())
    if head is not None:
        warnings.warn(
            f"The {record.name!r} weights of {record.model} have {record.classes} classes: the "
            f"body is loaded and the head for {head.units} classes starts afresh.",
            stacklevel=4,
        )
