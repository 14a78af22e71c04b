"""Copies of models whose stages have other arguments."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from mf_zoo.layers.flags import set_trainable_parts, trainable_parts
from mf_zoo.layers.mean_field_stage import MeanFieldStage, stages


def built_stages(model: Any) -> list[MeanFieldStage]:
    """The stages of a model.

    Raises:
        ValueError: If it is no built model with at least one stage.
    """
    found = stages(model) if isinstance(model, keras.Model) else []
    if not found or not all(stage.built for stage in found):
        raise ValueError(
            "`model` must be a built keras.Model with at least one mf_zoo.layers.MeanFieldStage. "
            f"Received: model={model!r}"
        )
    return found


def variables_outside(model: keras.Model) -> list[Any]:
    """The variables of a model that belong to no stage."""
    inside = {id(variable) for stage in stages(model) for variable in stage.variables}
    return [variable for variable in model.variables if id(variable) not in inside]


def copy_outside(source: keras.Model, target: keras.Model) -> None:
    """Gives a copy the values of the variables that belong to no stage."""
    for old, new in zip(variables_outside(source), variables_outside(target), strict=True):
        new.assign(ops.convert_to_numpy(old))


def weights_of_blocks(stage: MeanFieldStage) -> list[Any]:
    """The stacked weights of a stage, without its times."""
    return [weight for weight in stage.weights if weight is not stage.times]


def copy_flags(source: keras.Model, target: keras.Model) -> None:
    """Freezes in a copy what is frozen in the model it was made of.

    Configurations of layers that others wrote may not tell what is frozen in them, and flags of
    single variables are in none.
    """
    set_trainable_parts(target, trainable_parts(source))
    pairs = list(zip(variables_outside(source), variables_outside(target), strict=True))
    for old, new in zip(stages(source), stages(target), strict=True):
        set_trainable_parts(new.template(), trainable_parts(old.template()))
        pairs += zip(weights_of_blocks(old), weights_of_blocks(new), strict=True)
    for old_variable, new_variable in pairs:
        new_variable.trainable = old_variable.trainable


def copy_model(
    model: keras.Model, arguments: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> keras.Model:
    """A new model from the configuration of another, with other arguments in its stages.

    Args:
        model: A built model with stages, that Keras can save. It is not changed.
        arguments: Gives the arguments that change from the configuration of a stage.

    Returns:
        A new model, not compiled, whose weights are random.

    Raises:
        ValueError: If the model cannot be copied, or a stage is not in its configuration.
    """
    names = {keras.saving.get_registered_name(type(stage)) for stage in stages(model)}
    rewritten = 0

    def rewrite(config: Any) -> Any:
        nonlocal rewritten
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
            rewritten += 1
            config["config"] = {**config["config"], **arguments(config["config"])}
        return config

    # Classes need no registration, since these are at hand; nor is code from elsewhere run.
    custom_objects = {
        keras.saving.get_registered_name(type(layer)): type(layer)
        for layer in model._flatten_layers()
        if not type(layer).__module__.startswith("keras.")
    }
    try:
        config = rewrite(keras.saving.serialize_keras_object(model))
        copy = keras.saving.deserialize_keras_object(
            config, custom_objects=custom_objects, safe_mode=False
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            "`model` must be one that Keras can save and load, with its stages in its "
            f"configuration. Received: {model.name!r}, for which it says: {error}"
        ) from error
    # A layer may make its stage itself, out of reach.
    if not rewritten == len(stages(model)) == len(stages(copy)):
        raise ValueError(
            "Every stage must be in the configuration of the model, where its arguments can be "
            f"changed. Received: {model.name!r} with one that a layer makes itself"
        )
    return copy
