"""Twins: the same network with learned times, or with ordinary residual blocks."""

from typing import Any

import keras
from keras import ops

from mf_zoo.layers import BackwardRule, MeanFieldStage, stages
from mf_zoo.layers.flags import set_trainable_parts, trainable_parts


def to_mean_field(
    model: keras.Model, quadrature: Any = "backward", horizon: float | None = None
) -> keras.Model:
    """The mean-field twin of a model: a copy that computes the same and whose times are learned.

    Each stage gets new times, on the grid of the quadrature rule. With the default horizon every
    step is 1 there. Another horizon `T` makes the steps `T/n`; each block is then scaled by `n/T`,
    in the variables that it names in `output_scale_variables`, so that the function of the model
    stays. (Built anew with that horizon it would start with smaller steps instead.) Blocks are
    stored in depth order. A model whose times are learned already starts afresh on the grid.

    Args:
        model: A built `keras.Model` with `mf_zoo.layers.MeanFieldStage` in it, also in nested
            models, that Keras can save: functional, Sequential, or a subclass with `get_config`.
            It is not changed.
        quadrature: Quadrature rule of every stage: see `MeanFieldStage`.
        horizon: Horizon `T` of every stage; `None` for its number of particles `n`.

    Returns:
        A new model, not compiled, with the same names, weights, trainable flags and dtype policies.

    Raises:
        ValueError: The model has no stage or cannot be copied, or steps change in a stage whose
            residual function does not name variables that scale its output.

    Example:

    >>> plain = mf_zoo.applications.ResNet20(weights="cifar10")
    >>> model = mf_zoo.convert.to_mean_field(plain, quadrature="midpoint")
    >>> model.compile(mf_zoo.optimizers.MeanFieldSGD(0.01), "sparse_categorical_crossentropy")
    """
    # Checks both arguments as any stage would.
    stage = MeanFieldStage(keras.layers.Identity(), 1, quadrature=quadrature, horizon=horizon)
    return _twin(model, quadrature=stage.quadrature, horizon=horizon, train_times=True)


def to_plain(model: keras.Model) -> keras.Model:
    """The plain twin of a model: a copy that computes the same, with ordinary residual blocks.

    Blocks are stored in depth order, step sizes become part of the variables that blocks name in
    `output_scale_variables`, and times are fixed on the grid, where every step is 1. What became
    of the times is lost: `to_mean_field` starts them on the grid.

    Args:
        model: As in `to_mean_field`.

    Returns:
        A new model, not compiled, with the same names, weights, trainable flags and dtype policies;
        that of a network `MF...` of `mf_zoo.applications` is the network without `MF`, and its
        weight files load there. (Stages keep their integrator; builders of plain networks know
        Euler's method only.)

    Raises:
        ValueError: As in `to_mean_field`.

    Example:

    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> mf_zoo.convert.to_plain(model).save_weights("plain.weights.h5")
    >>> plain = mf_zoo.applications.ResNet20(weights="plain.weights.h5")
    """
    return _twin(model, quadrature=BackwardRule(), horizon=None, train_times=False, reorder=True)


def _twin(model: Any, horizon: float | None, **arguments: Any) -> keras.Model:
    """A copy of a model that computes the same, with other arguments of its stages."""
    sources = stages(model) if isinstance(model, keras.Model) else []
    if not sources or not all(stage.built for stage in sources):
        raise ValueError(
            "`model` must be a built keras.Model with at least one mf_zoo.layers.MeanFieldStage. "
            f"Received: model={model!r}"
        )
    twin = _copy(model, horizon=horizon, initial_times="grid", **arguments)
    targets = stages(twin)
    pairs = list(zip(_variables_outside(model), _variables_outside(twin), strict=True))
    for old, new in pairs:
        new.assign(ops.convert_to_numpy(old))
    for source, target in zip(sources, targets, strict=True):
        blocks = source.blocks()
        target.set_blocks([block.weights for block in blocks], [block.step for block in blocks])
        pairs += zip(_weights_of_blocks(source), _weights_of_blocks(target), strict=True)
    # Configurations of layers that others wrote may not tell what is frozen in them, and flags of
    # single variables are in none.
    set_trainable_parts(twin, trainable_parts(model))
    for source, target in zip(sources, targets, strict=True):
        set_trainable_parts(target.template(), trainable_parts(source.template()))
    for old, new in pairs:
        new.trainable = old.trainable
    return twin


def _weights_of_blocks(stage: MeanFieldStage) -> list[Any]:
    return [weight for weight in stage.weights if weight is not stage.times]


def _variables_outside(model: keras.Model) -> list[Any]:
    """The variables of a model that belong to no stage."""
    inside = {id(variable) for stage in stages(model) for variable in stage.variables}
    return [variable for variable in model.variables if id(variable) not in inside]


def _copy(model: keras.Model, **arguments: Any) -> keras.Model:
    """A new model from the configuration of another, with these arguments in all stages."""
    classes = {type(stage) for stage in stages(model)}
    names = {keras.saving.get_registered_name(cls) for cls in classes}

    def rewrite(config: Any) -> Any:
        if isinstance(config, list):
            return [rewrite(value) for value in config]
        if not isinstance(config, dict):
            return config
        config = {
            key: rewrite(value)
            for key, value in config.items()
            if not (key == "compile_config" and "class_name" in config)
        }
        if config.get("registered_name") in names:
            config["config"] = {**config["config"], **arguments}
        return config

    # Classes need no registration, since these are at hand; nor is code from elsewhere run.
    custom_objects = {
        keras.saving.get_registered_name(type(layer)): type(layer)
        for layer in model._flatten_layers()
        if not type(layer).__module__.startswith("keras.")
    }
    try:
        config = keras.saving.serialize_keras_object(model)
        twin = keras.saving.deserialize_keras_object(
            rewrite(config), custom_objects=custom_objects, safe_mode=False
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            "`model` must be one that Keras can save and load, with its stages in its "
            f"configuration. Received: {model.name!r}, for which it says: {error}"
        ) from error
    # A layer may make its stage itself, out of reach.
    if len(stages(twin)) != len(stages(model)) or any(
        stage.quadrature is not arguments["quadrature"] for stage in stages(twin)
    ):
        raise ValueError(
            "Every stage must be in the configuration of the model, where its arguments can be "
            f"changed. Received: {model.name!r} with one that a layer makes itself"
        )
    return twin
