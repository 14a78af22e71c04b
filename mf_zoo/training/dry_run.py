"""What a training run would take, worked out without running it."""

import math
from collections.abc import Iterable
from typing import Any

import keras

from mf_zoo import applications, data
from mf_zoo.errors import UserError, user_errors
from mf_zoo.layers import BatchNormalization, Conv2D, MeanFieldStage
from mf_zoo.layers.integrators import evaluations
from mf_zoo.layers.rematerialization import segments
from mf_zoo.layers.residual_function import ResidualFunction
from mf_zoo.training import ladder
from mf_zoo.training.assembly import (
    builder_values,
    check_counts,
    check_holdout,
    check_on_device,
    dtype_policy,
)
from mf_zoo.training.recipes import Recipe
from mf_zoo.training.settings import Machine, RunSettings


def dry_run(
    settings: RunSettings,
    *,
    machine: Machine | None = None,
    input_size: int | None = None,
    images: int | None = None,
    classes: int | None = None,
    devices: int = 1,
) -> dict[str, Any]:
    """Says what a training run would take: parameters, work, steps and memory.

    Needs no data, trains nothing and writes nothing. The batch is the recipe's, divided among the
    devices, each of which holds the whole network.

    Memory is that of one device at the end of the forward pass, when the most has to be there:

    - `weights`: all variables, those of statistics too, in their own dtype;
    - `gradients`: as many bytes as the trained variables;
    - `optimizer`: the momentum of every trained variable, if the recipe has momentum;
    - `weight_copies`: the trained variables once more in the compute dtype, for a step computes
      with copies that are sorted by time and cast;
    - `activations`: batch of the device times `activation_bytes`;
    - `batch`: uint8 images and int64 labels (with mixup or CutMix float32 images and one-hot
      labels);
    - `images`: all images, uint8, with `on_device`.

    It is the least that a device must have. What convolutions use as workspace, gradients of
    activations on their way, and what the backend's allocator keeps come on top.

    Args:
        settings: The settings of the run; the dataset says how large images are and how many
            images and classes there are.
        machine: As in `mf_zoo.training.train`.
        input_size: Pixels a side; `None` for the dataset's.
        images: Number of training images; `None` for the dataset's.
        classes: Number of classes; `None` for the dataset's.
        devices: Number of devices that share a batch; an epoch leaves out as many images as make
            its last batch unequal, at most `devices - 1`.

    Returns:
        A dictionary fit for JSON: `model`, `backend`, `dtype_policy`, `input_shape`, `classes`,
        `parameters` (`trained`, `others`), `multiply_adds` for an image, `batch_size`, `devices`,
        `batch_per_device`, `images`, `epochs`, `steps_per_epoch`, `steps`, `rungs` (for each
        network of the recipe's ladder, the model last: `model`, `epochs`, `steps` and the
        `multiply_adds` of its training), `training_multiply_adds` of all of them (three times
        those of the forward pass for each image, as in a run's result), and `memory` in bytes,
        while the model trains: the parts above and their `total`.

    Raises:
        UserError: For what `train` refuses, and a batch that the devices cannot share equally.

    Example:

    >>> from mf_zoo.training import RunSettings
    >>> from mf_zoo.training.dry_run import dry_run
    >>> dry_run(RunSettings("MFResNet20", recipe="quick"))["steps_per_epoch"]
    391
    """
    check_counts(input_size=input_size, images=images, classes=classes, devices=devices)
    on_device = machine is not None and machine.on_device
    check_on_device(on_device)
    if settings.trunk is not None:
        raise UserError(
            "A dry run is of a training from its start; a ladder says what it grows from. "
            f"Received: trunk={settings.trunk!r}"
        )
    with user_errors():
        model = applications.network(settings.model).name
        dataset = data.get(settings.dataset)
        chain = [*ladder.rungs(settings), settings]
    recipe = settings.recipe
    classes = classes or dataset.classes
    images = images or dataset.images["train"]
    images = min(images, settings.limit or images)
    check_holdout(settings.holdout, images)
    images -= settings.holdout
    if devices > images:
        raise UserError(
            "There must be at least one image for each device. "
            f"Received: {images} images, devices={devices}"
        )
    images -= images % devices
    if recipe.batch_size % devices:
        raise UserError(
            "The batch must be divisible by the number of devices. "
            f"Received: batch_size={recipe.batch_size}, devices={devices}"
        )
    network = _network(model, recipe, dataset, input_size, classes)
    trained = _size(network.trainable_variables)
    trained_bytes = _bytes(network.trainable_variables)
    batch = recipe.batch_size // devices
    steps = -(-images // recipe.batch_size)
    pixels = math.prod(network.input_shape[1:])
    rungs, start = [], 0
    for rung in chain:
        epochs, start = rung.last_epoch - start, rung.last_epoch
        trains = network
        if rung is not settings:
            trains = _network(rung.model, recipe, dataset, input_size, classes)
        work = 3 * epochs * images * applications.multiply_adds(trains)
        name = applications.network(rung.model).name
        rungs.append(
            {"model": name, "epochs": epochs, "steps": epochs * steps, "multiply_adds": work}
        )
    memory = {
        "weights": _bytes(network.variables),
        "gradients": trained_bytes,
        "optimizer": trained_bytes if recipe.momentum else 0,
        "weight_copies": trained * _item_bytes(network.compute_dtype),
        "activations": batch * activation_bytes(network),
        "batch": batch * (4 * (pixels + classes) if recipe.soft_labels else pixels + 8),
        "images": images * (pixels + 8) if on_device else 0,
    }
    return {
        "model": model,
        "backend": keras.config.backend(),
        "dtype_policy": recipe.dtype_policy,
        "input_shape": list(network.input_shape[1:]),
        "classes": classes,
        "parameters": {"trained": trained, "others": _size(network.variables) - trained},
        "multiply_adds": applications.multiply_adds(network),
        "batch_size": recipe.batch_size,
        "devices": devices,
        "batch_per_device": batch,
        "images": images,
        "epochs": settings.last_epoch,
        "steps_per_epoch": steps,
        "steps": settings.last_epoch * steps,
        "rungs": rungs,
        "training_multiply_adds": sum(rung["multiply_adds"] for rung in rungs),
        "memory": {**memory, "total": sum(memory.values())},
    }


def activation_bytes(model: keras.Model) -> int:
    """Bytes that a training step keeps for the backward pass, for one image.

    Every tensor that the gradients need is counted once, in the compute dtype of its layer:

    - the input of each convolution and dense layer, for the gradient of the kernel;
    - the input of each BatchNormalization, from which and from mean and variance of the batch the
      normalised values are computed again;
    - the input and the output of max pooling, which together say where the largest values were;
    - the output of each ReLU, which says where it was cut off (it is as a rule the input of a
      convolution, and then no further tensor), and of any other activation but the identity.

    A sum, padding, average pooling and the normalisation of the images keep nothing of their own.
    Of each block of a stage with `remat=True` only the input is kept, with an integer `k` only that
    of every `k`-th block; what one block keeps while it is computed again, and the inputs of the
    `k` blocks around it, come on top.
    `python -m benchmarks.memory` compares the count with what the backends keep
    (benchmarks/results/memory-jax.csv, memory-torch.csv).

    On PyTorch the layers of Keras 3.15 keep more than those of `mf_zoo.layers`, and that is counted
    there: `Conv2D` has a copy of its input with the channels second (unless Keras is set to
    channels first), and BatchNormalization, which is composed of elementary operations and computes
    in float32, keeps its input in float32 and a second tensor of the size, the centred input. Some
    numbers for each class and channel are left out.

    Args:
        model: A functional or sequential model of layers as those of the zoo, with an input of
            fixed size.

    Returns:
        The number of bytes.

    Raises:
        ValueError: For an input of variable size, or a layer of another kind.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    >>> activation_bytes(model)  # the input, 8 numbers of 4 bytes
    32
    """
    if any(side is None for side in model.input_shape[1:]):
        raise ValueError(
            "The input of `model` must be of a fixed size. "
            f"Received: input_shape={model.input_shape}"
        )
    kept: dict[Any, int] = {}
    _keep_of_model(model, kept)
    return sum(kept.values())


# Layers that keep nothing.
_NOTHING = (
    keras.layers.Add,
    keras.layers.AveragePooling2D,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.InputLayer,
    keras.layers.Normalization,
    keras.layers.Rescaling,
    keras.layers.ZeroPadding2D,
)


def _network(
    model: str, recipe: Recipe, dataset: data.Dataset, side: int | None, classes: int
) -> keras.Model:
    """The network that `train` would build, for images of `side` pixels a side."""
    rows, columns, channels = dataset.image_shape
    rows, columns = (rows, columns) if side is None else (side, side)
    first = keras.config.image_data_format() == "channels_first"
    with user_errors(), dtype_policy(recipe.dtype_policy):
        return applications.get(model)(
            input_shape=(channels, rows, columns) if first else (rows, columns, channels),
            classes=classes,
            classifier_activation=None,
            dataset=dataset.name,
            **builder_values(model, recipe),
        )


def _item_bytes(dtype: str) -> int:
    return int(dtype.lstrip("abcdefghijklmnopqrstuvwxyz")) // 8


def _size(variables: Iterable[Any]) -> int:
    return sum(math.prod(variable.shape) for variable in variables)


def _bytes(variables: Iterable[Any]) -> int:
    return sum(math.prod(variable.shape) * _item_bytes(variable.dtype) for variable in variables)


def _keep_of_model(model: keras.Model, kept: dict[Any, int]) -> None:
    """Adds what a model keeps to `kept`: bytes by tensor, a key being whatever names it."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            _keep_of_model(layer, kept)
        elif not isinstance(layer, _NOTHING):
            shape = layer.input.shape[1:]
            _keep_of_layer(layer, shape, id(layer.input), id(layer.output), kept)


def _keep_of_layer(
    layer: keras.layers.Layer, shape: tuple[int, ...], source: Any, target: Any, kept: dict
) -> None:
    """Adds what a layer keeps.

    Args:
        layer: The layer.
        shape: Shape of its input for one image.
        source, target: Keys of its input and its output.
        kept: Bytes by tensor.
    """
    theirs = keras.config.backend() == "torch" and not isinstance(
        layer, (BatchNormalization, Conv2D)
    )

    def keep(key: Any, shape: tuple[int, ...], dtype: str = layer.compute_dtype) -> None:
        kept[key] = math.prod(shape) * _item_bytes(dtype)

    if isinstance(layer, MeanFieldStage):
        # An integrator that evaluates a block twice keeps what two steps of Euler's method keep.
        steps = layer.num_particles * evaluations(layer.integrator)
        if layer.remat:  # but then what lies within is not kept
            steps = len(segments(layer.remat, layer.num_particles))
        for number in range(steps):
            last = number == steps - 1
            step = target if last else object()
            if layer.remat:
                keep(source, shape)
                source = step
                continue
            _keep_of_layer(layer.template(), shape, source, object(), kept)
            if layer.activation is not keras.activations.linear:
                keep(step, shape)
            source = step
    elif isinstance(layer, ResidualFunction):
        for part in layer.chain():
            following = object()
            if not isinstance(part, _NOTHING):
                _keep_of_layer(part, shape, source, following, kept)
            shape, source = part.compute_output_shape((None, *shape))[1:], following
    elif isinstance(layer, keras.layers.Conv2D):
        copied = theirs and layer.data_format == "channels_last"
        keep(object() if copied else source, shape)
    elif isinstance(layer, keras.layers.Dense):
        keep(source, shape)
    elif isinstance(layer, keras.layers.MaxPooling2D):
        # Where the largest values were follows from input and output.
        keep(source, shape)
        keep(target, layer.compute_output_shape((None, *shape))[1:])
    elif isinstance(layer, keras.layers.BatchNormalization):
        if theirs:
            # A layer of float32 has no copy of its input.
            keep(source if layer.compute_dtype == "float32" else object(), shape, "float32")
            keep(object(), shape, "float32")
        else:
            keep(source, shape)
    elif isinstance(layer, keras.layers.ReLU):
        keep(target, shape)
    elif isinstance(layer, keras.layers.Activation):
        if layer.activation is not keras.activations.linear:
            keep(target, shape)
    else:
        raise ValueError(
            "`model` must be made of convolutions, dense layers, BatchNormalization, activations, "
            "sums, padding, pooling, normalization of the images and mean-field stages. "
            f"Received: {layer!r}"
        )
