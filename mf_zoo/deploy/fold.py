"""The trained network as plain Keras layers, BatchNormalization and step sizes folded in."""

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from mf_zoo.devices import accelerator
from mf_zoo.layers import (
    BatchNormalization,
    Block,
    Conv2D,
    EulerIntegrator,
    GroupedConv2D,
    MeanFieldStage,
    StageStates,
)
from mf_zoo.layers.grouped_conv2d import _merged
from mf_zoo.layers.residual_function import ResidualFunction

# Layers of mf_zoo that compute in inference what a layer of Keras computes.
_PLAIN = {
    BatchNormalization: layers.BatchNormalization,
    Conv2D: layers.Conv2D,
    GroupedConv2D: layers.Conv2D,
}
_CONVOLUTIONS = (layers.Conv2D, Conv2D, GroupedConv2D)
_NORMALIZATIONS = (layers.BatchNormalization, BatchNormalization)
HALF_PRECISION = ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16")
_FOR_TRAINING = ("_initializer", "_regularizer", "_constraint")

# Gives the array that a variable of the original network stands for.
_Value = Callable[[Any], np.ndarray]


def fold(model: keras.Model, split_groups: bool | None = None) -> keras.Model:
    """Rewrites a network as plain Keras layers for inference, with the same outputs.

    Mean-field stages become residual blocks in the order of their times. A BatchNormalization that
    alone follows a convolution goes into its kernel and bias, a ReLU after that becomes its
    activation, and the step size scales the last convolution of a block:

        `dt (gamma (conv(x, w) - mean) / sqrt(variance + epsilon) + beta) = conv(x, s w) + b`,
        `s = dt gamma / sqrt(variance + epsilon)`, `b = dt beta - s mean`.

    `Normalization` of images becomes `Rescaling`; it cannot go into the convolution after it, which
    pads with zeros. BatchNormalization that follows no convolution stays, as at the start of a
    pre-activation block, whose input is also added to its output. All else is kept, such as a head
    of your own and nested models.

    Loading the result needs no mf_zoo. Layers come in depth order, and their names tell the
    particle: `stage1_2_conv1` is the first convolution of particle 2 of `stage1`, the one at index
    2 of its `times`. Blocks with a step of 0 are kept. With an integrator other than Euler's method
    the layers of a block are called as often as it evaluates the block, and its sums have no names.

    Args:
        model: A functional or Sequential `keras.Model` made of layers of Keras and of mf_zoo. It is
            not changed.
        split_groups: Whether a grouped convolution becomes ordinary ones side by side, each of at
            least 16 channels. `None`: on the CPU with TensorFlow and JAX, as `GroupedConv2D` does.

    Returns:
        A new `keras.Model`, not compiled, whose outputs in inference are those of `model` but for
        rounding. What `model` computes in half precision it computes in float32. Initializers,
        regularizers and constraints are left out.

    Raises:
        ValueError: For a subclassed model, a custom layer or function, and a stage whose residual
            function is none of `mf_zoo.layers`.

    Example:

    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> mf_zoo.deploy.fold(model).save("plain.keras")  # keras.saving.load_model reads it
    """
    if split_groups is None:
        slow = keras.config.backend() in ("tensorflow", "jax")
        split_groups = slow and accelerator() is None
    graph = _graph(model)
    for operation in graph.operations:
        _check(operation)
    return keras.models.clone_model(
        graph,
        clone_function=lambda operation: operation,
        call_function=_Folding(graph, split_groups),
    )


def _graph(model: Any) -> keras.Model:
    """A functional model of the same layers: not Sequential, and not compiled."""
    # A subclass with a `call` of its own may compute something else than its graph.
    call = getattr(type(model), "call", None)
    if call is keras.Sequential.call and model.built and model.inputs:
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    if hasattr(model, "operations"):
        graph = keras.Model(model.input, model.output, name=model.name)
        if call is type(graph).call:
            return graph
    raise ValueError(
        f"`model` must be a functional or Sequential keras.Model, built. Received: model={model!r}"
    )


def _check(operation: Any) -> None:
    """Raises ValueError unless Keras's own layers can take its place."""
    if isinstance(operation, StageStates):
        operation = operation.stage
    if isinstance(operation, MeanFieldStage):
        block = operation.template()
        if not isinstance(block, ResidualFunction):
            raise ValueError(
                "The residual function of a stage must be one of mf_zoo.layers, such as "
                f"BasicBlock. Received: {type(block).__name__} in {operation.name!r}"
            )
        foreign = _foreign(layers.Activation(operation.activation).get_config())
    elif isinstance(operation, (ResidualFunction, keras.Model)):
        foreign = None  # a model is looked into when it is folded
    elif type(operation) in _PLAIN or type(operation).__module__.split(".")[0] == "keras":
        foreign = _foreign(_config(operation))
    else:
        foreign = type(operation).__name__
    if foreign is not None:
        raise ValueError(
            "Every layer must be one of Keras or mf_zoo, with functions of Keras. "
            f"Received: {foreign} in {operation.name!r}"
        )


def _foreign(config: Any) -> str | None:
    """The first class or function in a configuration that is not Keras's, if there is one."""
    if isinstance(config, dict):
        if config.get("class_name") == "__lambda__":
            return "a lambda"
        if config.get("class_name") == "function":
            if not hasattr(keras.activations, config["config"]):
                return config["config"]
        elif (config.get("module") or "keras").split(".")[0] != "keras":
            return config["class_name"]
        config = config.values()
    elif not isinstance(config, (list, tuple)):
        return None
    return next(filter(None, map(_foreign, config)), None)


def _config(layer: Any) -> dict[str, Any]:
    """The layer's configuration for inference, in float32 instead of half precision."""
    config = layer.get_config()
    config = {key: value for key, value in config.items() if not key.endswith(_FOR_TRAINING)}
    if hasattr(layer, "kernel_initializer"):
        # Random values would only be replaced, and JAX compiles them anew for every shape.
        config["kernel_initializer"] = "zeros"
    if isinstance(layer, layers.Layer) and layer.dtype_policy.name in HALF_PRECISION:
        config["dtype"] = "float32"
    return config


class _Folding:
    """Calls what takes a layer's place: a `call_function` of `keras.models.clone_model`.

    Args:
        graph: The functional model to rewrite.
        split_groups: Whether to split grouped convolutions.
    """

    def __init__(self, graph: keras.Model, split_groups: bool):
        self.operations = {operation.name: operation for operation in graph.operations}
        self.followers = _followers(graph)
        self.split_groups = split_groups
        self.folded: set[str] = set()  # names of layers that went into a convolution
        self.made: dict[str, Any] = {}  # new layers; one that is called twice is made once

    def __call__(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        if layer.name in self.folded:
            return args[0]
        if isinstance(layer, (MeanFieldStage, StageStates, ResidualFunction)):
            if kwargs.get("training"):
                raise ValueError(
                    "A stage or residual function must not be called in training mode. "
                    f"Received: {layer.name!r} called with training=True"
                )
            if isinstance(layer, ResidualFunction):
                return self._residual_function(layer, args[0])
            if isinstance(layer, MeanFieldStage):
                return self._states(layer, args[0])[-1]
            states = self._states(layer.stage, args[0])
            return [states[position] for position in layer.positions]
        chain = [layer]
        while (name := self.followers.get(chain[-1].name)) is not None:
            chain.append(self.operations[name])
        group = _groups(chain)[0]
        self.folded.update(part.name for part in group[1:])
        return self._call(layer.name, group, ops.convert_to_numpy, *args, **kwargs)

    def _states(self, stage: MeanFieldStage, x: Any) -> list[Any]:
        states = [x]
        for one in stage.blocks():
            states.append(self._step(stage, one, states[-1]))
        return states

    def _step(self, stage: MeanFieldStage, one: Block, x: Any) -> Any:
        block = stage.template()
        scaled = {id(variable) for variable in block.output_scale_variables}
        arrays = {
            id(variable): array * (one.step if id(variable) in scaled else 1)
            for variable, array in zip(block.variables, one.weights, strict=True)
        }
        name = f"{stage.name}_{one.particle}"

        def update(x: Any) -> Any:
            return self._chain(block, lambda variable: arrays[id(variable)], name, x)

        def activation(x: Any) -> Any:
            if stage.activation is keras.activations.relu:
                return self._call(f"{name}_relu", [layers.ReLU()], None, x)
            if stage.activation is not keras.activations.linear:
                layer = layers.Activation(stage.activation)
                return self._call(f"{name}_activation", [layer], None, x)
            return x

        if type(stage.integrator) is EulerIntegrator:  # with a layer that has a name
            return activation(self._call(f"{name}_add", [layers.Add()], None, [x, update(x)]))
        return stage.integrator(x, update, activation)

    def _residual_function(self, block: ResidualFunction, x: Any) -> Any:
        return self._chain(block, ops.convert_to_numpy, block.name, x)

    def _chain(self, block: ResidualFunction, value: _Value, name: str, x: Any) -> Any:
        for group in _groups(block.chain()):
            x = self._call(f"{name}_{group[0].name}", group, value, x)
        return x

    def _call(self, name: str, group: list[Any], value: _Value, *args: Any, **kwargs: Any) -> Any:
        """Calls what takes the place of one of `_groups`, made at the first call."""
        if name not in self.made:
            first = group[0]
            if isinstance(first, keras.Model):
                self.made[name] = fold(first, self.split_groups)
            elif type(first) in _CONVOLUTIONS and (len(group) > 1 or first.groups > 1):
                self.made[name] = _convolution(name, group, value, self.split_groups)
            elif type(first) is layers.Normalization and len(first.mean.shape) > 2:
                self.made[name] = _rescaling(name, first)
            else:
                self.made[name] = layer = _copy(name, first)
                outputs = layer(*args, **kwargs)  # builds it
                if isinstance(layer, layers.Layer):
                    _transfer(first, layer, value)
                return outputs
        return self.made[name](*args, **kwargs)


def _followers(graph: keras.Model) -> dict[str, str]:
    """Pairs of operations: the second alone uses the first's output, and each is called once."""
    config = graph.get_config()
    calls = {operation["name"]: operation["inbound_nodes"] for operation in config["layers"]}
    # The names of outputs; the indices that come with them do no harm.
    uses = {name: [None] for name in keras.tree.flatten(config["output_layers"])}
    for name, nodes in calls.items():
        for used in _used(nodes):
            uses.setdefault(used, []).append(name)
    return {
        name: following[0]
        for name, following in uses.items()
        if len(following) == 1
        and following[0] is not None
        and len(calls[name]) <= 1
        and len(calls[following[0]]) == 1
        and len(calls[following[0]][0]["args"]) == 1
        and not calls[following[0]][0]["kwargs"].get("training")
    }


def _used(nodes: Any) -> Iterator[str]:
    """The names of the operations whose outputs are arguments of calls."""
    if isinstance(nodes, dict):
        if nodes.get("class_name") == "__keras_tensor__":
            yield nodes["config"]["keras_history"][0]
            return
        nodes = nodes.values()
    elif not isinstance(nodes, (list, tuple)):
        return
    for part in nodes:
        yield from _used(part)


def _groups(chain: list[Any]) -> list[list[Any]]:
    """Parts a chain of layers into those that become one layer."""
    groups: list[list[Any]] = []
    for layer in chain:
        if groups and _folds_into(groups[-1], layer):
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups


def _folds_into(group: list[Any], layer: Any) -> bool:
    convolution = group[0]
    if type(convolution) not in _CONVOLUTIONS:
        return False
    if convolution.activation is not keras.activations.linear:
        return False
    if type(layer) in _NORMALIZATIONS:
        channels = 1 if convolution.data_format == "channels_first" else 3
        return len(group) == 1 and layer.axis % 4 == channels
    return _is_relu(layer) and not _is_relu(group[-1])


def _is_relu(layer: Any) -> bool:
    if type(layer) is layers.ReLU:
        return layer.max_value is None and layer.negative_slope == 0 and layer.threshold == 0
    return type(layer) is layers.Activation and layer.activation is keras.activations.relu


def _copy(name: str, layer: Any) -> Any:
    return _PLAIN.get(type(layer), type(layer)).from_config({**_config(layer), "name": name})


def _transfer(source: Any, target: Any, value: _Value) -> None:
    """Gives a layer, and the layers in it, the weights that another's stand for."""
    pairs = zip(source._flatten_layers(), target._flatten_layers(), strict=True)
    for old, new in pairs:
        store: dict[str, Any] = {}
        old.save_own_variables(store)
        new.load_own_variables({key: value(variable) for key, variable in store.items()})


def _rescaling(name: str, layer: layers.Normalization) -> layers.Layer:
    """The same with constants: exported, those of `Normalization` become inputs of ONNX models."""
    exact = _copy(name, layer)  # the layer's own constants are rounded to its compute dtype
    exact.build(layer.get_build_config()["input_shape"])
    _transfer(layer, exact, ops.convert_to_numpy)
    mean = ops.convert_to_numpy(exact.mean).astype("float64")[0]
    deviation = np.sqrt(ops.convert_to_numpy(exact.variance).astype("float64")[0])
    deviation = np.maximum(deviation, keras.config.epsilon())
    scale, offset = (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)
    return layers.Rescaling(scale.tolist(), offset.tolist(), name=name, dtype=exact.dtype_policy)


def _convolution(name: str, group: list[Any], value: _Value, split_groups: bool) -> Any:
    """A convolution that does what a group of `_groups` does."""
    first = group[0]
    config = _config(first)
    kernel = value(first.kernel).astype("float64")
    bias = value(first.bias).astype("float64") if first.use_bias else np.zeros(first.filters)
    for layer in group[1:]:
        if _is_relu(layer):
            config["activation"] = "relu"
            continue
        variance = value(layer.moving_variance).astype("float64")
        scale = 1 / np.sqrt(variance + layer.epsilon)
        if layer.scale:
            scale = scale * value(layer.gamma)
        kernel = kernel * scale  # the filters are the last axis of a kernel
        bias = (bias - value(layer.moving_mean)) * scale
        if layer.center:
            bias = bias + value(layer.beta)
    config |= {"name": name, "use_bias": True}
    if not split_groups or first.groups == 1:
        return _built(config, kernel, bias)
    return _SplitConvolution(config, kernel, bias)


def _built(config: dict[str, Any], kernel: np.ndarray, bias: np.ndarray) -> layers.Conv2D:
    """A `Conv2D` with weights."""
    layer = layers.Conv2D.from_config(config)
    shape = [None] * 4
    shape[1 if layer.data_format == "channels_first" else 3] = kernel.shape[2] * layer.groups
    layer.build(tuple(shape))
    layer.set_weights([kernel, bias])
    return layer


class _SplitConvolution:
    """A grouped convolution by ordinary ones, each of a few groups with zeros between them."""

    def __init__(self, config: dict[str, Any], kernel: np.ndarray, bias: np.ndarray):
        groups, depth, filters = config["groups"], kernel.shape[2], len(bias)
        merged = _merged(groups, depth)
        count, width = groups // merged, filters // groups
        self.axis = 1 if config["data_format"] == "channels_first" else -1
        self.name = config["name"]
        self.convolutions = []
        self.concatenate = layers.Concatenate(self.axis, name=f"{self.name}_concatenate")
        for index in range(count):
            block_diagonal = np.zeros((*kernel.shape[:2], merged * depth, merged * width))
            for group in range(merged):
                start = (index * merged + group) * width
                block_diagonal[
                    ...,
                    group * depth : (group + 1) * depth,
                    group * width : (group + 1) * width,
                ] = kernel[..., start : start + width]
            part = {"name": f"{self.name}_{index}", "groups": 1, "filters": merged * width}
            own = slice(index * merged * width, (index + 1) * merged * width)
            self.convolutions.append(_built({**config, **part}, block_diagonal, bias[own]))

    def __call__(self, x: Any) -> Any:
        if len(self.convolutions) == 1:
            return self.convolutions[0](x)
        parts = ops.split(x, len(self.convolutions), axis=self.axis)
        outputs = [layer(part) for layer, part in zip(self.convolutions, parts, strict=True)]
        return self.concatenate(outputs)
