"""Intermediate states of a network: of every stage, and of every block in depth order."""

import difflib
import fnmatch
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras

from mf_zoo.applications.assembly import LAST_LAYER, STEM_LAYERS
from mf_zoo.layers import MeanFieldStage, StageStates, stages

# Rows and columns of a network for images of any size, to see what becomes of them.
_SIDE = 256
# In the outputs of a nested model, where no name of a state can be.
_OUTPUT = "/output"


class FeatureInfo(NamedTuple):
    """What a state of a network looks like.

    Attributes:
        shape: Its shape without the batch; `None` where that depends on the images.
        channels: Number of channels.
        reduction: Side of the images by side of the state: 4 says that one place of the state
            stands for 4 x 4 pixels. `None` of what is no map, and of models whose input is not one
            batch of images.
    """

    shape: tuple[int | None, ...]
    channels: int
    reduction: int | None


class _Place(NamedTuple):
    """Where a state is: `position` counts those of a stage from its input, `None` is the output."""

    name: str
    layers: tuple[Any, ...]  # the layer, and before it the nested models around it
    position: int | None = None
    is_state: bool = True  # else the output of another layer

    @property
    def is_output_of_stage(self) -> bool:
        return isinstance(self.layers[-1], MeanFieldStage) and self.name == self.layers[-1].name


def features(model: keras.Model, layers: str | Sequence[str] | None = None) -> keras.Model:
    """A model whose outputs are intermediate states of a network.

    The names of states, in depth order:

    - `"stem"`: after the stem, what enters the first stage or its entry block (in networks of the
      zoo);
    - `"stage1/entry"`: `X^0`, what enters the stage, after the entry block if there is one;
    - `"stage1/0"`, `"stage1/1"` and so on: `X^1`, `X^2`, after the first block in depth order,
      after the second;
    - `"stage1"`: after the stage, which is after its last block;
    - `"features"`: what the pooling takes: after the last stage and, in pre-activation networks,
      after the last BatchNormalization and ReLU.

    Stages of models of your own have the names of their layers. Stages in nested models, as that of
    a body under a head of your own, have the same names. The output of any other layer is had by
    the layer's name.

    A stage sorts its blocks in each call: `"stage1/0"` is the state after the block that has the
    smallest time at the time of the call, after training has moved the times too.

    Args:
        model: A functional or Sequential model: of the zoo, plain or mean-field, or your own.
        layers: Names, or patterns as in a shell, whose `*` stops at the `/`: `"stage*"` is every
            stage, `"stage2/*"` all in the second, `"*/*"` all in all. Patterns fit states, not
            other layers. `None` for the state after each stage.

    Returns:
        A `keras.Model` that shares the layers, and so the weights, of `model`, which is not
        changed. Its output is a dictionary of float tensors `(batch, rows, cols, channels)`, or
        channels first as in `model`, in the compute dtype of their layers. (Keras may sort it by
        name; `feature_info` has the depth order.) It computes what the states need and no more, but
        for a nested model, which is run to its end. It can be differentiated, trained and saved.

    Raises:
        ValueError: For a name or pattern that fits nothing or, of one state, more than one; and
            for a model that is neither functional nor Sequential.

    Example:

    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> extractor = mf_zoo.features(model, ["stem", "stage3/0", "stage3"])
    >>> states = extractor.predict(mf_zoo.data.sample("cifar10")[0][:4], verbose=0)
    >>> states["stem"].shape, states["stage3/0"].shape, states["stage3"].shape
    ((4, 32, 32, 16), (4, 8, 8, 64), (4, 8, 8, 64))
    """
    graph = _graph(model)
    if graph is None:
        raise ValueError(
            "`model` must be a functional or Sequential keras.Model, built. "
            f"Received: model={model!r}"
        )
    places = list(_places(graph))
    if layers is None:
        chosen = [place for place in places if place.is_output_of_stage]
    else:
        asked = [layers] if isinstance(layers, str) else list(layers)
        chosen = [place for name in asked for place in _named(places, name)]
    if not chosen:
        raise ValueError(
            "`model` must have a MeanFieldStage, or `layers` name other layers. "
            f"Received: model={model.name!r} with {len(stages(model))} stages, layers={layers!r}"
        )
    chosen = [place for place in places if place in chosen]  # each once, in depth order
    _check_names(chosen)
    return _extractor(graph, chosen)


def feature_info(model: keras.Model) -> dict[str, FeatureInfo]:
    """The states that `features` finds in a network, in depth order.

    Args:
        model: As in `features`.

    Returns:
        A `FeatureInfo` for each name.

    Raises:
        ValueError: For a model that is neither functional nor Sequential.

    Example:

    >>> info = mf_zoo.feature_info(mf_zoo.applications.MFResNet20())
    >>> list(info)[:6]
    ['stem', 'stage1/entry', 'stage1/0', 'stage1/1', 'stage1/2', 'stage1']
    >>> info["stage3"]
    FeatureInfo(shape=(8, 8, 64), channels=64, reduction=4)
    """
    extractor = features(model, ["*", "*/*"])
    shapes = {name: tuple(state.shape) for name, state in extractor.output.items()}
    maps, sides = {}, ()
    if len(extractor.inputs) == 1 and len(extractor.inputs[0].shape) == 4:
        images = [_SIDE if side is None else side for side in extractor.inputs[0].shape[1:]]
        given = keras.tree.map_structure(
            lambda x: keras.KerasTensor((None, *images), dtype=x.dtype), extractor.input
        )
        maps = {name: map.shape for name, map in extractor.compute_output_spec(given).items()}
        sides = images[_rows() - 1 : _rows() + 1]
    return {
        name: FeatureInfo(
            shape[1:],
            shape[1 if len(shape) == 4 and _rows() == 2 else -1],
            _reduction(sides, maps[name]) if sides and len(shape) == 4 else None,
        )
        for name, shape in shapes.items()
    }


def _rows() -> int:
    """The axis of rows in a batch of images."""
    return 2 if keras.config.image_data_format() == "channels_first" else 1


def _reduction(sides: Sequence[int], shape: Sequence[int]) -> int:
    """The side of images by that of a map, of squares of their areas: sides may be rounded up."""
    return round(math.prod(sides) ** 0.5 / math.prod(shape[_rows() : _rows() + 2]) ** 0.5)


def _graph(model: Any) -> keras.Model | None:
    """A functional model of the same layers: not Sequential, and not compiled."""
    if not getattr(model, "inputs", None):
        return None
    if isinstance(model, keras.Sequential):  # which has no `input`
        graph = keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    else:
        graph = keras.Model(model.input, model.output, name=model.name)
    # A subclass with a `call` of its own may compute something else than its graph.
    plain = getattr(type(model), "call", None) in (type(graph).call, keras.Sequential.call)
    return graph if plain else None


def _places(graph: keras.Model, around: tuple[Any, ...] = ()) -> Iterator[_Place]:
    """The states and other outputs in a model, from input to output."""
    operations = graph.operations
    names = {operation.name for operation in operations}
    stem = next((name for name in STEM_LAYERS if name in names), None)
    found = [operation.name for operation in operations if isinstance(operation, MeanFieldStage)]
    last = LAST_LAYER if LAST_LAYER in names else found[-1] if found else None
    for operation in operations:
        path = (*around, operation)
        inner = _graph(operation) if isinstance(operation, keras.Model) else None
        if isinstance(operation, MeanFieldStage):
            yield _Place(f"{operation.name}/entry", path, 0)
            for position in range(operation.num_particles):
                yield _Place(f"{operation.name}/{position}", path, position + 1)
            yield _Place(operation.name, path)
        elif inner is not None:
            yield from _places(inner, path)
            yield _Place(operation.name, path, is_state=False)
        elif not isinstance(operation, keras.layers.InputLayer):
            yield _Place(operation.name, path, is_state=False)
        if operation.name == stem:
            yield _Place("stem", path)
        if operation.name == last:
            yield _Place("features", path)


def _named(places: Sequence[_Place], asked: str) -> list[_Place]:
    """Those that a name or pattern means."""
    found = [place for place in places if place.name == asked]
    found = found or [place for place in places if place.is_state and _fits(place.name, asked)]
    if not found:
        names = list(dict.fromkeys(place.name for place in places))
        near = difflib.get_close_matches(str(asked), names, n=3, cutoff=0.5)
        states = [place.name for place in places if place.is_state and "/" not in place.name]
        raise ValueError(
            "`layers` must be names or patterns of states, or names of other layers. States here "
            f"are {', '.join(states) or 'none'}, and those within stages, which "
            "`mf_zoo.feature_info(model)` lists."
            + (f" Near names are {', '.join(near)}." if near else "")
            + f" Received: {asked!r}"
        )
    return found


def _fits(name: str, pattern: str) -> bool:
    parts, patterns = name.split("/"), str(pattern).split("/")
    return len(parts) == len(patterns) and all(map(fnmatch.fnmatchcase, parts, patterns))


def _check_names(places: Sequence[_Place]) -> None:
    names = [place.name for place in places]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            "Each state must be in the model once; take the features of a nested model by itself. "
            f"Received: {', '.join(map(repr, twice))} in more than one of its parts"
        )


def _extractor(graph: keras.Model, places: Sequence[_Place], inner: bool = False) -> keras.Model:
    """The model whose outputs are the states; `inner`: and the output of the model, too."""
    tap = _Tap(places)
    clone = keras.models.clone_model(graph, clone_function=lambda layer: layer, call_function=tap)
    outputs = {place.name: tap.found[place.name] for place in places}
    if inner:
        return keras.Model(clone.input, {**outputs, _OUTPUT: clone.output}, name=graph.name)
    return keras.Model(clone.input, outputs, name=f"{graph.name}_features")


class _Tap:
    """Calls layers and keeps states: a `call_function` of `keras.models.clone_model`.

    Args:
        places: The states to keep in `found`, by name.
    """

    def __init__(self, places: Sequence[_Place]):
        self.places = places
        self.found: dict[str, Any] = {}

    def __call__(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        places = [place for place in self.places if place.layers[0] is layer]
        if any(place.name in self.found for place in places):
            raise ValueError(
                "A layer whose states are asked for must be called once. "
                f"Received: {layer.name!r}, which is called several times"
            )
        within = [place._replace(layers=place.layers[1:]) for place in places if place.layers[1:]]
        here = {place.name: place.position for place in places if not place.layers[1:]}
        states = {0: args[0]} if args else {}
        if positions := sorted({position for position in here.values() if position}):
            positions += {layer.num_particles} - set(positions)
            tapped = StageStates(layer, positions, name=f"{layer.name}_states")
            states |= zip(positions, tapped(*args, **kwargs), strict=True)
            outputs = states[layer.num_particles]
        elif within:
            inner = _extractor(_graph(layer), within, inner=True)(*args, **kwargs)
            outputs = inner[_OUTPUT]
            self.found |= {place.name: inner[place.name] for place in within}
        else:
            outputs = layer(*args, **kwargs)
        for name, position in here.items():
            self.found[name] = outputs if position is None else states[position]
        return outputs
