"""A model cut at its stages."""

import dataclasses
from typing import Any

import keras

from mf_zoo.layers import MeanFieldStage, stages


@dataclasses.dataclass(frozen=True, eq=False)
class Segments:
    """A model as a chain: `pieces[0]`, `stages[0]`, `pieces[1]`, `stages[1]`, ..., `pieces[-1]`.

    Args:
        stages: The mean-field stages, from input to output.
        pieces: What lies before, between and after them: models that share the layers. `pieces[k]`
            takes the output of stage `k - 1` (the model's input for `k = 0`) and gives the input of
            stage `k` (the model's output for the last).
    """

    stages: list[MeanFieldStage]
    pieces: list[Any]


def cut(model: keras.Model) -> Segments:
    """Cuts a functional model at its stages.

    Args:
        model: A functional model with one input and one output, whose stages lie one after another:
            all that leads from one to the next passes through a single tensor.

    Returns:
        The `Segments`.

    Raises:
        ValueError: For any other model.

    Example:

    >>> from mf_zoo.theory import segments
    >>> parts = segments.cut(mf_zoo.applications.MFResNet20())
    >>> [stage.name for stage in parts.stages], len(parts.pieces)
    (['stage1', 'stage2', 'stage3'], 4)
    """
    found = stages(model)
    if not found:
        raise ValueError(
            f"`model` must have a MeanFieldStage. Received: model={model.name!r} without one"
        )
    depths = getattr(model, "_nodes_by_depth", {})
    nodes = [
        node
        for depth in sorted(depths, reverse=True)  # from input to output
        for node in depths[depth]
        if isinstance(node.operation, MeanFieldStage)
    ]
    once = sorted(id(node.operation) for node in nodes) == sorted(map(id, found))
    if not once or len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "`model` must be a functional model with one input and one output that holds each of "
            "its stages once, and none within another model. "
            f"Received: model={model.name!r} of type {type(model).__name__}"
        )
    starts = [model.inputs[0], *(node.output_tensors[0] for node in nodes)]
    targets = [*(node.input_tensors[0] for node in nodes), model.outputs[0]]
    pieces = []
    for k, (start, target) in enumerate(zip(starts, targets, strict=True)):
        if start is target:
            pieces.append(keras.layers.Identity())
            continue
        try:
            pieces.append(keras.Model(start, target, name=f"{model.name}_piece{k}"))
        except ValueError as error:
            raise ValueError(
                "The stages of `model` must lie one after another, each reached from the one "
                "before through its output alone. "
                f"Received: model={model.name!r}, where stage {k} is reached in another way"
            ) from error
    return Segments([node.operation for node in nodes], pieces)
