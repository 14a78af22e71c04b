"""The state of an optimizer goes along when the depth of a model changes."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.layers import stages
from mf_zoo.layers.measures import Resampling


def carry_over(source: keras.Model, target: keras.Model, changes: Sequence[Resampling]) -> None:
    """Compiles a model as another one is, with the state of its optimizer.

    Step counts, learning rate and the like are copied. What the optimizer keeps for each weight,
    such as a momentum, is copied outside of the stages, and mixed in them as the weights were.

    Args:
        source: A compiled model.
        target: The model made of it, whose stages have other numbers of particles.
        changes: What became of the particles of each stage, in the order of depth.

    Raises:
        ValueError: If the optimizer keeps something for a weight that has not the weight's shape.
    """
    target.compile_from_config(source.get_compile_config())
    if target.optimizer is None:
        raise ValueError(
            "`optimizer=True` needs a model whose loss and metrics Keras can save. "
            f"Received: {source.name!r}, compiled with {source.optimizer!r}"
        )
    mixed = {}
    for old, new, change in zip(stages(source), stages(target), changes, strict=True):
        before = ops.convert_to_numpy(old.depth_order())
        after = np.argsort(ops.convert_to_numpy(new.depth_order()))
        mixed |= {id(weight): (before, change, after) for weight in old.weights}
    _carry(source.optimizer, target.optimizer, mixed)


def _carry(old: Any, new: Any, mixed: dict[int, Any]) -> None:
    if not old.built:
        return
    done: set[int] = set()
    if hasattr(old, "inner_optimizer"):
        _carry(old.inner_optimizer, new.inner_optimizer, mixed)
        inner = (*old.inner_optimizer.variables, *new.inner_optimizer.variables)
        done = {id(variable) for variable in inner}
    variables = old._trainable_variables
    for name, slots in vars(old).items():
        if name == "_trainable_variables" or not _is_list_of_slots(slots, variables):
            continue
        for variable, slot, place in zip(variables, slots, vars(new)[name], strict=True):
            if slot is None:
                continue
            done.add(id(slot))
            value = ops.convert_to_numpy(slot)
            if id(variable) in mixed:
                before, change, after = mixed[id(variable)]
                if value.shape[:1] == before.shape:
                    value = change.apply(value[before])[after]
            if value.shape != tuple(place.shape):
                raise ValueError(
                    "The state of an optimizer can be carried over where it has the shapes of the "
                    f"weights. Received: {type(old).__name__} with {tuple(slot.shape)} for "
                    f"{variable.path}, {tuple(variable.shape)}"
                )
            place.assign(value)
    # Step counts and the like.
    places = {_name(variable): variable for variable in new.variables if id(variable) not in done}
    for variable in old.variables:
        place = places.get(_name(variable))
        if id(variable) not in done and place is not None and place.shape == variable.shape:
            place.assign(ops.convert_to_numpy(variable))


def _is_list_of_slots(value: Any, variables: Sequence[Any]) -> bool:
    return (
        isinstance(value, list)
        and len(value) == len(variables) > 0
        and all(slot is None or isinstance(slot, keras.Variable) for slot in value)
    )


def _name(variable: Any) -> str:
    return variable.path.rpartition("/")[2]
