"""Conversion of weights: from PyTorch's state dicts, and between mean-field and plain twins."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from mf_zoo.layers import BackwardRule, MeanFieldStage, stages
from mf_zoo.layers.residual_function import ResidualFunction

_SHOWN = 4  # differences named in an error message

# What the layers of a network are called elsewhere: `stage` and `unit` (block of a stage) count
# from 1, `index` is that of the unit from 0, `number` that of the convolution in its block from 1.
_UNIT = "features.stage{stage}.unit{unit}"
_NAMES = {
    "pytorchcv": {
        "stem_conv": "features.init_block.conv",
        "stem_bn": "features.init_block.bn",
        "conv": _UNIT + ".body.conv{number}.conv",
        "bn": _UNIT + ".body.conv{number}.bn",
        "shortcut_conv": _UNIT + ".identity_conv.conv",
        "shortcut_bn": _UNIT + ".identity_conv.bn",
        "predictions": "output",
    },
    "pytorchcv, pre-activation": {
        "stem_conv": "features.init_block",
        "conv": _UNIT + ".body.conv{number}.conv",
        "bn": _UNIT + ".body.conv{number}.bn",
        "shortcut_conv": _UNIT + ".identity_conv",
        "last_bn": "features.post_activ.bn",
        "predictions": "output",
    },
    "torchvision": {
        "stem_conv": "conv1",
        "stem_bn": "bn1",
        "conv": "layer{stage}.{index}.conv{number}",
        "bn": "layer{stage}.{index}.bn{number}",
        "shortcut_conv": "layer{stage}.{index}.downsample.0",
        "shortcut_bn": "layer{stage}.{index}.downsample.1",
        "predictions": "fc",
    },
}
_BATCH_NORMALIZATION = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_EPSILON = 1e-5  # of torch.nn.BatchNorm2d
# By rank: how PyTorch's arrays are turned into Keras's. Kernels of convolutions are
# (out, in / groups, rows, cols) there and (rows, cols, in / groups, out) here.
_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def from_torch(
    state_dict: Mapping[str, Any],
    model: keras.Model,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> keras.Model:
    """Loads a PyTorch state dict of the same architecture: all of it, or nothing.

    Two ways of naming are known: that of the package `pytorchcv` (`resnet20_cifar10` and deeper,
    `resnet164bn_cifar10` for `ResNet164(preactivation=False)`, `preresnet110_cifar10`,
    `preresnet164bn_cifar10`, `resnext29_32x4d_cifar10`, ...), and that of torchvision's `ResNet`
    (`conv1`, `bn1`, `layer1.0.conv1`, `layer2.0.downsample.0`, `fc`), which the post-activation
    ResNets of chenyaofo/pytorch-cifar-models have. A prefix `module.` of all names is dropped, and
    `num_batches_tracked` has no use here.

    Every other array must find its variable, and every variable its array. Blocks come in depth
    order: the first one goes to the particle with the smallest time. In a mean-field model whose
    steps are not 1 each block is divided by its step, so that the model computes what the PyTorch
    module does, whatever its times.

    PyTorch adds 1e-5 to the variance in BatchNormalization, the networks here 1.001e-5 (the least
    that cuDNN's kernel takes on TensorFlow). So `gamma` is multiplied by the square root of
    `(variance + 1.001e-5) / (variance + 1e-5)`, at most 1.0005, and inference is the same.

    Public weights expect images normalised as in their training. Pass that `mean` and `std`, and
    the converted model takes images in 0..255, as all models here. Those of pytorchcv (CIFAR-10 and
    CIFAR-100) and of chenyaofo's CIFAR-10 models are `mean=(0.4914, 0.4822, 0.4465)` and
    `std=(0.2023, 0.1994, 0.2010)`; those of chenyaofo's CIFAR-100 models
    `mean=(0.5070, 0.4865, 0.4409)` and `std=(0.2673, 0.2564, 0.2761)`. They are constants of the
    layer `normalization`, no weights: `model.save("model.keras")` keeps them,
    `model.save_weights` does not, and a model that is filled from such a file needs them anew.

    Args:
        state_dict: Names and arrays, PyTorch tensors or anything NumPy reads: what
            `torch.load(path, weights_only=True)` or `safetensors.numpy.load_file` returns, or
            `module.state_dict()`. PyTorch itself is not imported.
        model: A network of `mf_zoo.applications`, mean-field or plain, filled in place. A compiled
            model stays compiled; compile a model that contains it again after `mean` and `std`.
        mean: Mean of each of 3 channels, RGB, in units of images in 0..1, as in
            `torchvision.transforms.Normalize`; `None` to keep the model's, that of CIFAR-10.
        std: Standard deviations, likewise.

    Returns:
        `model`.

    Raises:
        ValueError: An array is missing, has no place or another shape, or an argument is not what
            it should be. The model is unchanged.

    Example:

    >>> from pytorchcv.models.resnet_cifar import resnet20_cifar10
    >>> module = resnet20_cifar10()  # random weights
    >>> model = mf_zoo.applications.MFResNet20(classifier_activation=None)
    >>> mf_zoo.convert.from_torch(
    ...     module.state_dict(),
    ...     model,
    ...     mean=(0.4914, 0.4822, 0.4465),
    ...     std=(0.2023, 0.1994, 0.2010),
    ... ).predict(mf_zoo.data.sample("cifar10")[0]).shape
    (200, 10)
    """
    _check_network(model)
    normalization = _check_normalization(model, mean, std)
    arrays = _read(state_dict)
    preactivation = any(layer.name == "last_bn" for layer in model.layers)
    if preactivation:
        naming = "pytorchcv, pre-activation"
    else:
        naming = "torchvision" if "conv1.weight" in arrays else "pytorchcv"
    places = {place.name: place for place in _places(model, _NAMES[naming])}
    _check_covered(model, places)
    differences = _differences(places, arrays)
    if differences:
        raise ValueError(
            f"`state_dict` must hold the {len(places)} arrays of {model.name!r} in the naming of "
            f"{naming}, with such names as {next(iter(places))!r}; the model is unchanged. "
            f"Received: {len(arrays)} arrays: {differences}"
        )

    assignments = []
    blocks: dict[int, list[list[Any]]] = {
        id(stage): [[None] * stage.num_particles for _ in stage._stacked] for stage in stages(model)
    }
    for place in places.values():
        array = arrays[place.name]
        array = array.transpose(_AXES[array.ndim])
        if place.weight == "gamma":
            # Nothing else of a layer tells PyTorch's epsilon from ours, and where variances are
            # small that shows: by up to 1 % in the scores of deep networks.
            variance = arrays[place.name.removesuffix("weight") + "running_var"].astype("float64")
            array = array * np.sqrt((variance + place.layer.epsilon) / (variance + _EPSILON))
        if place.stage is None:
            assignments.append((place.variable, array))
        else:
            variables = place.stage.pattern().variables
            k = next(k for k, variable in enumerate(variables) if variable is place.variable)
            blocks[id(place.stage)][k][place.position] = array
    for stage in stages(model):
        values = [np.stack(parts) for parts in blocks[id(stage)]]
        assignments += _blocks_in_depth_order(stage, values, np.ones(stage.num_particles))
    for variable, value in assignments:
        variable.assign(value)
    if normalization is not None:
        _set_normalization(model, normalization, mean, std)
    return model


class _Place(NamedTuple):
    """Where an array of a state dict goes."""

    name: str  # in the state dict
    layer: keras.layers.Layer  # of the model, or of the pattern of the blocks of a stage
    weight: str  # attribute of the layer
    stage: MeanFieldStage | None = None
    position: int | None = None  # of the particle in depth order

    @property
    def variable(self) -> Any:
        return getattr(self.layer, self.weight)


def _places(model: keras.Model, names: dict[str, str]) -> Iterator[_Place]:
    """All places of a network of `mf_zoo.applications`, in the given naming."""
    layers = {layer.name: layer for layer in model.layers}

    def of_layer(layer: Any, module: str, *particle: Any) -> Iterator[_Place]:
        arrays = {"weight": "kernel", "bias": "bias"}
        if isinstance(layer, keras.layers.BatchNormalization):
            arrays = _BATCH_NORMALIZATION
        elif not layer.use_bias:
            del arrays["bias"]
        for theirs, ours in arrays.items():
            yield _Place(f"{module}.{theirs}", layer, ours, *particle)

    def of_block(block: ResidualFunction, unit: dict[str, int], *particle: Any) -> Iterator[_Place]:
        for number in range(1, 4):
            for kind in ("bn", "conv"):
                layer = getattr(block, f"{kind}{number}", None)
                if layer is not None:
                    yield from of_layer(layer, names[kind].format(number=number, **unit), *particle)

    for kind in ("stem_conv", "stem_bn", "last_bn", "predictions"):
        if kind in layers:
            yield from of_layer(layers[kind], names[kind])
    for number in itertools.count(1):
        stage = layers.get(f"stage{number}")
        if stage is None:
            return
        units = ({"stage": number, "unit": u, "index": u - 1} for u in itertools.count(1))
        head = layers.get(f"head{number}_block")
        if head is not None:
            unit = next(units)
            yield from of_block(head, unit)
            for kind in ("shortcut_conv", "shortcut_bn"):
                if f"head{number}_{kind}" in layers:
                    yield from of_layer(layers[f"head{number}_{kind}"], names[kind].format(**unit))
            if f"head{number}_bn" in layers:  # shared by block and shortcut; theirs is the block's
                module = names["bn"].format(number=1, **unit)
                yield from of_layer(layers[f"head{number}_bn"], module)
        for position in range(stage.num_particles):
            yield from of_block(stage.pattern(), next(units), stage, position)


def _read(state_dict: Any) -> dict[str, np.ndarray]:
    """The arrays of a state dict by name, without what has no use here."""
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise ValueError(
            "`state_dict` must map names to arrays, as `torch.load(path, weights_only=True)` "
            f"returns it. Received: state_dict of type {type(state_dict).__name__}"
        )
    parallel = all(str(name).startswith("module.") for name in state_dict)
    arrays = {}
    for name, value in state_dict.items():
        name = str(name).removeprefix("module." if parallel else "")
        if name.rpartition(".")[2] == "num_batches_tracked":
            continue
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            if "bfloat16" in str(value.dtype):  # unknown to NumPy
                value = value.float()
        array = np.asarray(value)
        if array.dtype.kind != "f":
            raise ValueError(
                "`state_dict` must map names to floating-point arrays; of a checkpoint, pass the "
                "entry with the weights of the network. "
                f"Received: {name!r} of type {type(value).__name__}"
            )
        arrays[name] = array
    return arrays


def _check_network(model: Any) -> None:
    """Raises ValueError unless the model is like those of `mf_zoo.applications`."""
    found = stages(model) if isinstance(model, keras.Model) else []
    named = {layer.name: layer for layer in model.layers} if found else {}
    if (
        "stem_conv" not in named
        or any(named.get(f"stage{number}") is not stage for number, stage in enumerate(found, 1))
        or not all(isinstance(stage.pattern(), ResidualFunction) for stage in found)
    ):
        raise ValueError(
            "`model` must be a network of mf_zoo.applications, such as ResNet20(). (Of a model "
            f"that contains one, pass that part.) Received: model={model!r}"
        )


def _differences(places: dict[str, _Place], arrays: dict[str, np.ndarray]) -> str:
    """What keeps a state dict from filling a model, the first few differences; "" for nothing."""
    found = []
    for name, place in places.items():
        shape = tuple(place.variable.shape)
        if len(shape) == 4:
            shape = tuple(shape[axis] for axis in (3, 2, 0, 1))
        elif len(shape) == 2:
            shape = shape[::-1]
        if name not in arrays:
            found.append(f"{name!r} {shape} is missing")
        elif arrays[name].shape != shape:
            found.append(f"{name!r} is {arrays[name].shape} instead of {shape}")
    found += [
        f"{name!r} {array.shape} has no place in the model"
        for name, array in arrays.items()
        if name not in places
    ]
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _check_covered(model: keras.Model, places: Mapping[str, _Place]) -> None:
    """Raises ValueError if the model has variables that no state dict fills."""
    filled = {id(place.variable) for place in places.values()}
    inside = {id(variable) for stage in stages(model) for variable in stage.variables}
    variables = [variable for variable in model.variables if id(variable) not in inside]
    for stage in stages(model):
        variables += stage.pattern().variables
    others = [variable.path for variable in variables if id(variable) not in filled]
    if others:
        raise ValueError(
            "`model` must have no variables but those of a network of mf_zoo.applications. "
            f"Received: {model.name!r} with {', '.join(map(repr, others[:_SHOWN]))}"
        )


def _check_normalization(model: keras.Model, mean: Any, std: Any) -> Any:
    """The layer that `mean` and `std` are for; None without them."""
    if mean is None and std is None:
        return None
    try:
        values = np.array([mean, std], "float64")
    except (TypeError, ValueError):
        values = np.zeros(0)
    if values.shape != (2, 3) or not (
        np.all((values >= 0) & (values <= 1)) and np.all(values[1] > 0)
    ):
        raise ValueError(
            "`mean` and `std` must come together, 3 numbers each in units of images in 0..1, "
            f"standard deviations above 0. Received: mean={mean!r}, std={std!r}"
        )
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.input_mean is not None:
            return layer
    raise ValueError(
        "`model` must have a Normalization layer with constants for `mean` and `std` to be set. "
        f"Received: model={model.name!r} without one"
    )


def _set_normalization(model: keras.Model, layer: Any, mean: Any, std: Any) -> None:
    layer.input_mean = [255 * float(value) for value in mean]
    layer.input_variance = [(255 * float(value)) ** 2 for value in std]
    layer.build(layer.get_build_config()["input_shape"])
    # Functions compiled before hold the former constants.
    model.train_function = model.test_function = model.predict_function = None


def _blocks_in_depth_order(
    stage: MeanFieldStage, values: list[np.ndarray], steps: np.ndarray
) -> list[tuple[Any, np.ndarray]]:
    """What to assign so that the `l`-th block of a stage adds `steps[l] f_l`, whatever its times.

    Args:
        stage: The stage to fill.
        values: An array `(n, ...)` for each of its stacked weights, in depth order.
        steps: The factors of the residual functions, in depth order.

    Returns:
        Pairs of a variable of the stage and its new value.
    """
    order = ops.convert_to_numpy(stage.depth_order())
    own = ops.convert_to_numpy(stage.step_sizes()).astype("float64")
    if np.any(own <= 0):
        raise ValueError(
            "Every block must have a positive step to compute what it is to compute. "
            f"Received: step sizes {own.tolist()} in stage {stage.name!r}"
        )
    factors = steps / own
    if not stage._folded and not np.allclose(factors, 1, rtol=0, atol=1e-6):
        raise ValueError(
            "Step sizes can only change where the residual function names the variables that "
            "scale its output, in a property `output_scale_variables`: nothing else can take up "
            f"the change. Received: {type(stage.pattern()).__name__} without it in stage "
            f"{stage.name!r}, whose steps would change by the factors {factors.round(4).tolist()}"
        )
    assignments = []
    for k, (weight, value) in enumerate(zip(stage._stacked, values, strict=True)):
        if k in stage._folded:
            shape = (-1,) + (1,) * (value.ndim - 1)
            value = (value * factors.reshape(shape)).astype(value.dtype)
        assignments.append((weight, value[np.argsort(order)]))
    return assignments


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
    pattern = MeanFieldStage(keras.layers.Identity(), 1, quadrature=quadrature, horizon=horizon)
    return _twin(model, quadrature=pattern.quadrature, horizon=horizon, train_times=True)


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
        weight files load there.

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
    assignments = [(new, ops.convert_to_numpy(old)) for old, new in pairs]
    for source, target in zip(sources, targets, strict=True):
        order = ops.convert_to_numpy(source.depth_order())
        values = [ops.convert_to_numpy(weight)[order] for weight in source._stacked]
        steps = ops.convert_to_numpy(source.step_sizes()).astype("float64")
        assignments += _blocks_in_depth_order(target, values, steps)
        pairs += zip(source._stacked, target._stacked, strict=True)
    for variable, value in assignments:
        variable.assign(value)
    # Flags of layers inside blocks, and of single variables, are in no configuration.
    for old, new in zip(model._flatten_layers(), twin._flatten_layers(), strict=True):
        new.trainable = old.trainable
    for old, new in pairs:
        new.trainable = old.trainable
    return twin


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
