"""He et al.'s CIFAR ResNets, mean-field and plain."""

import os
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from mf_zoo import weights as registry
from mf_zoo.layers import BasicBlock, BatchNormalization, MeanFieldStage

# Per-channel mean and standard deviation of the CIFAR-10 training images, in units of 0..255.
MEAN = (125.307, 122.950, 113.865)
STD = (62.993, 62.089, 66.705)

_FILTERS = (16, 32, 64)
_BATCH_NORMALIZATION = {"momentum": 0.9, "epsilon": 1.001e-5}


def _head_of_stage(x: Any, filters: int, name: str) -> Any:
    """The block that halves the image and changes the channels: a plain residual block."""
    axis = 1 if keras.config.image_data_format() == "channels_first" else -1
    shortcut = layers.Conv2D(
        filters,
        1,
        strides=2,
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_shortcut_conv",
    )(x)
    shortcut = BatchNormalization(axis=axis, **_BATCH_NORMALIZATION, name=f"{name}_shortcut_bn")(
        shortcut
    )
    update = BasicBlock(filters, strides=2, **_BATCH_NORMALIZATION, name=f"{name}_block")(x)
    x = layers.Add(name=f"{name}_add")([shortcut, update])
    return layers.ReLU(name=f"{name}_relu")(x)


def _network(
    depth: int,
    input_tensor: Any,
    input_shape: tuple[int | None, ...],
    include_top: bool,
    pooling: str | None,
    classes: int,
    classifier_activation: Any,
    name: str,
    stage_arguments: dict[str, Any],
) -> keras.Model:
    if input_tensor is None:
        inputs = layers.Input(shape=input_shape, name="images")
    elif keras.backend.is_keras_tensor(input_tensor):
        inputs = input_tensor
    else:
        inputs = layers.Input(tensor=input_tensor, shape=input_shape)
    axis = 1 if keras.config.image_data_format() == "channels_first" else -1
    x = layers.Normalization(
        axis=axis, mean=MEAN, variance=np.square(STD).tolist(), name="normalization"
    )(inputs)
    x = layers.Conv2D(
        _FILTERS[0],
        3,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        name="stem_conv",
    )(x)
    x = BatchNormalization(axis=axis, **_BATCH_NORMALIZATION, name="stem_bn")(x)
    x = layers.ReLU(name="stem_relu")(x)
    blocks = (depth - 2) // 6
    for number, filters in enumerate(_FILTERS, start=1):
        if number > 1:
            x = _head_of_stage(x, filters, f"head{number}")
        x = MeanFieldStage(
            BasicBlock(filters, **_BATCH_NORMALIZATION),
            num_particles=blocks - (number > 1),
            activation="relu",
            name=f"stage{number}",
            **stage_arguments,
        )(x)
    if include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dense(classes, name="predictions")(x)
        # In float32 under mixed precision too: probabilities want the digits.
        x = layers.Activation(classifier_activation, dtype="float32", name="scores")(x)
    elif pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pool")(x)
    if input_tensor is not None:
        inputs = keras.utils.get_source_inputs(inputs)
    return keras.Model(inputs, x, name=name)


def _default_shape(input_shape: tuple[int | None, ...] | None) -> tuple[int | None, ...]:
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


def _load_registered(model: keras.Model, record: Any, build: Callable[[int], Any]) -> None:
    """Puts registered weights into `model`; a head of another size starts afresh, and says so.

    Args:
        model: The network to fill.
        record: `mf_zoo.weights.WeightRecord` of the weights.
        build: Makes the network with its head for a number of classes, as the file was saved.
    """
    path = registry.path(record)
    head = next((layer for layer in model.layers if layer.name == "predictions"), None)
    if head is not None and head.units == record.classes:
        registry.load(model, path)
        return
    source = build(record.classes)
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


_ARGUMENTS = """
    Args:
        include_top: Whether to end in global average pooling and a classifier.
        weights: `None` (random), a registered name such as `"cifar10"` (see
            `mf_zoo.weights.records()`), or the path of a `.weights.h5` file of this network.
            Registered weights also load into another number of `classes` or without the top:
            the body is then loaded and the head starts afresh.
        input_tensor: Keras tensor to use as images; `None` for a new input.
        input_shape: `(rows, cols, 3)`, or channels first where Keras is set so; rows and cols are
            pixels, at least 8, or `None`. Defaults to `(32, 32, 3)`.
        pooling: Without the top: `None` for a feature map, `"avg"` or `"max"` for a vector.
        classes: Number of classes; `None` for that of the registered weights, else 10.
        classifier_activation: Activation of the scores; `None` for logits.
        name: Name of the model; `None` for its own.
"""

_MEAN_FIELD_ARGUMENTS = """\
        quadrature: Quadrature rule of every `mf_zoo.layers.MeanFieldStage`; `None` for that of
            the registered weights, else `"backward"`.
        horizon: Horizon `T` of every stage; `None` for that of the registered weights, else the
            stage's number of particles.
        initial_times: `"grid"` or `"random"`.
"""

_REST = """
    Returns:
        A `keras.Model` from images `(batch, rows, cols, 3)`, uint8 or float, 0..255 (they are
        normalised inside), to float32 scores `(batch, classes)`, or to features.

    Raises:
        ValueError: For unknown weights, and arguments out of range.

    Source: He, Zhang, Ren, Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016,
    section 4.2, with projection shortcuts{source}.

    Example:

    >>> model = mf_zoo.applications.{name}(weights=None)
    >>> model.predict(mf_zoo.data.sample("cifar10")[0]).shape
    (200, 10)
    """


def _build(
    zoo_name: str,
    depth: int,
    mean_field: bool,
    include_top: bool,
    weights: Any,
    input_tensor: Any,
    input_shape: tuple[int | None, ...] | None,
    pooling: str | None,
    classes: int | None,
    classifier_activation: Any,
    name: str | None,
    quadrature: Any = None,
    horizon: float | None = None,
    initial_times: Any = "grid",
) -> keras.Model:
    if pooling not in (None, "avg", "max"):
        raise ValueError(f'`pooling` must be None, "avg" or "max". Received: pooling={pooling!r}')
    if classes is not None and not (isinstance(classes, int) and classes > 0):
        raise ValueError(f"`classes` must be a positive integer. Received: classes={classes!r}")
    is_file = weights is not None and (
        isinstance(weights, os.PathLike) or os.path.sep in weights or weights.endswith(".h5")
    )
    record = None if weights is None or is_file else registry.get(zoo_name, weights)
    if record is not None:
        classes = record.classes if classes is None else classes
        quadrature = record.quadrature if quadrature is None else quadrature
        horizon = record.horizon if horizon is None else horizon
    stage_arguments = {
        "quadrature": "backward" if quadrature is None else quadrature,
        "horizon": horizon,
        "initial_times": initial_times,
        "train_times": mean_field,
    }
    name = zoo_name.lower() if name is None else name
    model = _network(
        depth,
        input_tensor,
        _default_shape(input_shape),
        include_top,
        pooling,
        10 if classes is None else classes,
        classifier_activation,
        name,
        stage_arguments,
    )
    if is_file:
        registry.load(model, weights)
    elif record is not None:
        _load_registered(
            model,
            record,
            lambda classes: _network(
                depth, None, _default_shape(None), True, None, classes, None, name, stage_arguments
            ),
        )
    return model


def _finish(builder: Callable[..., keras.Model], depth: int, mean_field: bool) -> Any:
    """Names and documents a builder."""
    per_stage = [blocks := (depth - 2) // 6, blocks - 1, blocks - 1]
    if mean_field:
        name = f"MFResNet{depth}"
        summary = f"Mean-field ResNet-{depth} for CIFAR: stages of {per_stage} particles."
        source = "; Lu et al., *A Mean-field\n    Analysis of Deep ResNet and Beyond*, ICML 2020"
    else:
        name = f"ResNet{depth}"
        summary = (
            f"ResNet-{depth} for CIFAR: the plain twin of `MFResNet{depth}`, the same code with "
            "times\n    fixed on the grid, so that every step size is 1."
        )
        source = ""
    builder.__name__ = builder.__qualname__ = name
    builder.__module__ = "mf_zoo.applications"
    arguments = _ARGUMENTS + (_MEAN_FIELD_ARGUMENTS if mean_field else "")
    builder.__doc__ = summary + "\n" + arguments + _REST.format(source=source, name=name)
    return builder


def _mean_field_builder(depth: int) -> Callable[..., keras.Model]:
    def builder(
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
    ) -> keras.Model:
        return _build(
            f"MFResNet{depth}",
            depth,
            True,
            include_top,
            weights,
            input_tensor,
            input_shape,
            pooling,
            classes,
            classifier_activation,
            name,
            quadrature,
            horizon,
            initial_times,
        )

    return _finish(builder, depth, mean_field=True)


def _plain_builder(depth: int) -> Callable[..., keras.Model]:
    def builder(
        include_top: bool = True,
        weights: str | os.PathLike | None = None,
        input_tensor: Any = None,
        input_shape: tuple[int | None, ...] | None = None,
        pooling: str | None = None,
        classes: int | None = None,
        classifier_activation: Any = "softmax",
        name: str | None = None,
    ) -> keras.Model:
        return _build(
            f"ResNet{depth}",
            depth,
            False,
            include_top,
            weights,
            input_tensor,
            input_shape,
            pooling,
            classes,
            classifier_activation,
            name,
        )

    return _finish(builder, depth, mean_field=False)


MFResNet20 = _mean_field_builder(20)
MFResNet32 = _mean_field_builder(32)
MFResNet44 = _mean_field_builder(44)
MFResNet56 = _mean_field_builder(56)
MFResNet110 = _mean_field_builder(110)
ResNet20 = _plain_builder(20)
ResNet32 = _plain_builder(32)
ResNet44 = _plain_builder(44)
ResNet56 = _plain_builder(56)
ResNet110 = _plain_builder(110)

_BUILDERS = {
    builder.__name__: builder
    for builder in (
        MFResNet20,
        MFResNet32,
        MFResNet44,
        MFResNet56,
        MFResNet110,
        ResNet20,
        ResNet32,
        ResNet44,
        ResNet56,
        ResNet110,
    )
}


def names() -> list[str]:
    """Names of the ready-built networks.

    Example:

    >>> mf_zoo.applications.names()[0]
    'MFResNet20'
    """
    return list(_BUILDERS)


def get(name: str) -> Callable[..., keras.Model]:
    """Finds a network's builder by its name.

    Args:
        name: One of `names()`, such as `"MFResNet20"`.

    Returns:
        The builder: a function with the signature of `keras.applications`.

    Raises:
        ValueError: For an unknown name; the message lists the right ones.

    Example:

    >>> mf_zoo.applications.get("ResNet56")().count_params()
    860051
    """
    if name not in _BUILDERS:
        raise ValueError(f"Model must be one of {names()}. Received: {name!r}")
    return _BUILDERS[name]
