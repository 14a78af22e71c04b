"""Weights from PyTorch: what the arrays of a state dict are called, and where they go."""

import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from mf_zoo.convert.naming import Naming, namings, recognize
from mf_zoo.layers import MeanFieldStage, stages
from mf_zoo.layers.residual_function import ResidualFunction

_SHOWN = 4  # differences named in an error message

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

    The naming is recognised (`mf_zoo.convert.recognize`): that of the package `pytorchcv`
    (`resnet20_cifar10` and deeper, `resnet164bn_cifar10` for `PostActResNet164`,
    `preresnet110_cifar10`, `preresnet164bn_cifar10`, `resnext29_32x4d_cifar10`, ...); that of
    torchvision's `ResNet`, which timm's and the post-activation ResNets of
    chenyaofo/pytorch-cifar-models have; that of kuangliu/pytorch-cifar and
    akamaster/pytorch_resnet_cifar10; that of weiaicunzai/pytorch-cifar100. A prefix `module.` of
    all names is dropped, and `num_batches_tracked` has no use here. The networks of akamaster have
    identity shortcuts: they go into `ResNet20(shortcut="identity")` and deeper ones.

    Every other array must find its variable, and every variable its array. Blocks come in depth
    order: the first one goes to the particle with the smallest time. In a mean-field model whose
    steps are not 1 each block is divided by its step, so that the model computes what the PyTorch
    module does, whatever its times.

    PyTorch adds 1e-5 to the variance in BatchNormalization, the networks here 1.001e-5 (the least
    that cuDNN's kernel takes on TensorFlow). So `gamma` is multiplied by the square root of
    `(variance + 1.001e-5) / (variance + 1e-5)`, at most 1.0005, and inference is the same.

    Public weights expect images normalised as in their training. Pass that `mean` and `std`, and
    the converted model takes images in 0..255, as all models here. What the repositories that name
    so use is in `recognize(state_dict).normalizations`; without `mean` and `std` a warning says so.
    They are constants of the layer `normalization`, no weights: `model.save("model.keras")` keeps
    them, `model.save_weights` does not, and a model that is filled from such a file needs them
    anew.

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

    ```python
    from pytorchcv.models.resnet_cifar import resnet20_cifar10

    module = resnet20_cifar10()  # random weights
    model = mf_zoo.convert.from_torch(
        module.state_dict(),
        mf_zoo.applications.MFResNet20(classifier_activation=None),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2023, 0.1994, 0.2010),
    )
    ```
    """
    _check_network(model)
    normalization = _check_normalization(model, mean, std)
    arrays = _read(state_dict)
    naming = _naming(model, arrays)
    places = {place.name: place for place in _places(model, naming)}
    _check_covered(model, places)
    differences = _differences(places, arrays)
    if differences:
        if not any("shortcut" in name for name in arrays) and any(
            "shortcut" in place.layer.name for place in places.values()
        ):
            differences += (
                '. Its shortcuts seem to be identities: build the model with shortcut="identity"'
            )
        raise ValueError(
            f"`state_dict` must hold the {len(places)} arrays of {model.name!r} in the naming of "
            f"{naming.name}, with such names as {next(iter(places))!r}; the model is unchanged. "
            f"Received: {len(arrays)} arrays: {differences}"
        )

    assignments = []
    blocks: dict[int, list[list[Any]]] = {
        id(stage): [[None] * len(stage.template().variables) for _ in range(stage.num_particles)]
        for stage in stages(model)
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
            variables = place.stage.template().variables
            k = next(k for k, variable in enumerate(variables) if variable is place.variable)
            blocks[id(place.stage)][place.position][k] = array
    filled = [  # before anything is changed, for this may fail
        stage.weights_for_steps(blocks[id(stage)], np.ones(stage.num_particles))
        for stage in stages(model)
    ]
    for stage, weights in zip(stages(model), filled, strict=True):
        stage.set_blocks(weights)
    for variable, value in assignments:
        variable.assign(value)
    if normalization is not None:
        _set_normalization(model, normalization, mean, std)
    else:
        _tell_normalizations(model, naming)
    return model


class _Place(NamedTuple):
    """Where an array of a state dict goes."""

    name: str  # in the state dict
    layer: keras.layers.Layer  # of the model, or of the template of a stage
    weight: str  # attribute of the layer
    stage: MeanFieldStage | None = None
    position: int | None = None  # of the particle in depth order

    @property
    def variable(self) -> Any:
        return getattr(self.layer, self.weight)


def _naming(model: keras.Model, arrays: Mapping[str, Any]) -> Naming:
    """The naming of a state dict: the most likely one of networks like the model."""
    preactivation = any(layer.name == "last_bn" for layer in model.layers)
    found = recognize(arrays)
    if found is not None and found.preactivation == preactivation:
        return found
    return namings()["pytorchcv, pre-activation" if preactivation else "pytorchcv"]


def _tell_normalizations(model: keras.Model, naming: Naming) -> None:
    """Warns that images may have to be normalised in another way than the model does it."""
    known = "; ".join(
        f"{one.repository} on {one.dataset}: mean={one.mean}, std={one.std}"
        for one in naming.normalizations
    )
    warnings.warn(
        f"The arrays are named as in {naming.name}. {model.name!r} keeps its own mean and standard "
        f"deviation of images; pass `mean` and `std` of the weights' training. {known}",
        stacklevel=3,
    )


def _places(model: keras.Model, naming: Naming) -> Iterator[_Place]:
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
                    yield from of_layer(
                        layer, naming.module(kind, number=number, **unit), *particle
                    )

    for kind in ("stem_conv", "stem_bn", "last_bn", "predictions"):
        if kind in layers:
            yield from of_layer(layers[kind], naming.module(kind))
    for number in itertools.count(1):
        stage = layers.get(f"stage{number}")
        if stage is None:
            return
        units = ({"stage": number, "unit": unit} for unit in itertools.count(1))
        head = layers.get(f"head{number}_block")
        if head is not None:
            unit = next(units)
            yield from of_block(head, unit)
            for kind in ("shortcut_conv", "shortcut_bn"):
                if f"head{number}_{kind}" in layers:
                    module = naming.module(kind, **unit)
                    yield from of_layer(layers[f"head{number}_{kind}"], module)
            if f"head{number}_bn" in layers:  # shared by block and shortcut; theirs is the block's
                module = naming.module("bn", **unit)
                yield from of_layer(layers[f"head{number}_bn"], module)
        for position in range(stage.num_particles):
            yield from of_block(stage.template(), next(units), stage, position)


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
        or not all(isinstance(stage.template(), ResidualFunction) for stage in found)
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
        variables += stage.template().variables
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
