"""A model run many times with its blocks in other orders, with other steps or without some.

The functions on lesions and shuffles are made of it. The model is compiled once: the depth orders
and the steps of its stages are variables of a model around it.
"""

import contextlib
import dataclasses
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo import devices
from mf_zoo.depth.recalibration import estimate, in_training
from mf_zoo.layers import MeanFieldStage, stages


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """In which order a stage applies its blocks, and with which steps.

    Args:
        order: int32 `(n,)`: which particle is applied first, second, ...
        steps: Float `(n,)`: the step of the block at each depth. With a step of 0 the block is
            missing: `X^l = activation(X^(l-1))`.
    """

    order: np.ndarray
    steps: np.ndarray

    def without(self, position: int) -> "Schedule":
        """The same without the block at a depth. All other steps stay as they are."""
        steps = self.steps.copy()
        steps[position] = 0
        return Schedule(self.order, steps)

    def permuted(self, permutation: Sequence[int]) -> "Schedule":
        """The same with what was at depth `permutation[l]` at depth `l`, each with its step."""
        permutation = np.asarray(permutation)
        return Schedule(self.order[permutation], self.steps[permutation])


def schedules(model: keras.Model) -> list[Schedule]:
    """The schedules of a model's stages as they are, from input to output.

    Args:
        model: A built model.

    Returns:
        List of `Schedule`.

    Raises:
        ValueError: If the model has no stages or is not built.

    Example:

    >>> from mf_zoo.theory import interventions
    >>> first = interventions.schedules(mf_zoo.applications.MFResNet20())[0]
    >>> first.order.tolist(), first.without(1).steps.tolist()
    ([0, 1, 2], [1.0, 0.0, 1.0])
    """
    found = stages(model)
    if not found or not all(stage.built for stage in found):
        raise ValueError(
            "`model` must be built and have a MeanFieldStage. "
            f"Received: model={model.name!r} with {len(found)} stages"
        )
    result = []
    for stage in found:
        order, steps = (np.array(ops.convert_to_numpy(part)) for part in stage._schedule())
        result.append(Schedule(order.astype("int32"), steps))
    return result


@contextlib.contextmanager
def scheduled(found: Sequence[MeanFieldStage], parts: Sequence[tuple[Any, Any]]) -> Iterator[None]:
    """Gives stages the orders and steps of others, until the block ends, by an error too.

    Args:
        found: The stages.
        parts: For each an order and steps: tensors `(n,)`.
    """
    try:
        for stage, part in zip(found, parts, strict=True):
            # In the object's own dictionary, past Keras's tracking of attributes: found before the
            # method of the class, and gone without a trace.
            stage.__dict__["_schedule"] = lambda part=part: part
        yield
    finally:
        for stage in found:
            stage.__dict__.pop("_schedule", None)


class Scheduled(keras.Model):
    """A model whose stages take their orders and steps from variables of this one.

    No variable of the model changes. It does what the model does until `set` is called.

    Args:
        model: A built model with stages.
    """

    def __init__(self, model: keras.Model):
        super().__init__(name=model.name, autocast=False)
        self.model = model
        self.depth_orders, self.step_sizes = [], []
        for k, schedule in enumerate(schedules(model)):
            for name, value in (("order", schedule.order), ("steps", schedule.steps)):
                variable = self.add_weight(
                    shape=value.shape,
                    initializer="zeros",
                    dtype=value.dtype.name,
                    trainable=False,
                    autocast=False,
                    name=f"{name}{k}",
                )
                (self.depth_orders if name == "order" else self.step_sizes).append(variable)
        self.set(schedules(model))
        self.built = True
        self.compile(jit_compile=devices.jit_compile())

    def set(self, chosen: Sequence[Schedule]) -> None:
        """Sets the schedule of each stage."""
        for schedule, order, steps in zip(chosen, self.depth_orders, self.step_sizes, strict=True):
            order.assign(schedule.order)
            steps.assign(schedule.steps)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        parts = [
            (order.value, steps.value)
            for order, steps in zip(self.depth_orders, self.step_sizes, strict=True)
        ]
        with scheduled(stages(self.model), parts):
            return self.model(inputs, training=training)


class Evaluator:
    """A model's error and loss on given data under any schedules.

    Args:
        model: A built classifier with stages.
        x: Images as the model takes them, an array, or batches of `(x, y)`. These are kept.
        y: Integer labels `(count,)`; `None` with batches.
        batch_size: Images in a batch of an array.
        loss: As in `compile`, of labels and outputs.
        recalibrate_on: Training images, as `mf_zoo.depth.recalibrate` takes them, on which the
            statistics of BatchNormalization are estimated anew for all schedules; `None` leaves
            them as they are.
    """

    def __init__(
        self,
        model: keras.Model,
        x: Any,
        y: Any = None,
        batch_size: int = 200,
        loss: Any = "sparse_categorical_crossentropy",
        recalibrate_on: Any = None,
    ):
        self.batches = labelled(x, y, batch_size)
        self.loss = per_image(loss)
        self.model = Scheduled(model)
        self.images = recalibrate_on
        if hasattr(recalibrate_on, "__next__"):  # it can be read only once
            self.images = list(recalibrate_on)
        self.training = None if recalibrate_on is None else in_training(self.model)

    def __call__(self, chosen: Sequence[Schedule]) -> tuple[float, float]:
        """Error in % and mean loss with these schedules of the stages."""
        self.model.set(chosen)
        if self.training is None:
            return self._measure()
        before = [(v, np.array(ops.convert_to_numpy(v))) for v in self.model.model.variables]
        try:
            estimate(self.training, self.images)
            return self._measure()
        finally:
            for variable, value in before:
                variable.assign(value)

    def _measure(self) -> tuple[float, float]:
        wrong, loss, count = 0, 0.0, 0
        for images, labels in self.batches:
            outputs = np.asarray(self.model.predict_on_batch(images), "float32")
            check_labels(outputs.shape, labels)
            wrong += int(np.sum(outputs.argmax(axis=1) != labels))
            loss += float(np.sum(ops.convert_to_numpy(self.loss(labels, outputs)), dtype="float64"))
            count += len(labels)
        return 100 * wrong / count, loss / count


def per_image(loss: Any) -> Any:
    """A loss of `compile` as a function of labels and outputs that gives each image's."""
    found = keras.losses.get(loss)
    if not callable(found):
        raise ValueError(f"`loss` must be a loss as `compile` takes one. Received: loss={loss!r}")
    return found.call if isinstance(found, keras.losses.Loss) else found


def check_labels(shape: Sequence[int], labels: np.ndarray) -> None:
    """Raises a `ValueError` unless outputs of this shape are scores of these labels."""
    if len(shape) != 2 or labels.min() < 0 or labels.max() >= shape[1]:
        raise ValueError(
            "`model` must give scores of the shape (images, classes), and labels must be classes. "
            f"Received: outputs of shape {tuple(shape)}, labels from {labels.min()} to "
            f"{labels.max()}"
        )


def whole_numbers(value: Any, name: str, smallest: int, largest: float = math.inf) -> list[int]:
    """One whole number or several as a list; a `ValueError` unless all are within bounds."""
    try:
        numbers = [operator.index(number) for number in np.atleast_1d(value).tolist()]
    except TypeError:
        numbers = []
    if not numbers or min(numbers) < smallest or max(numbers) > largest:
        bounds = f"at least {smallest}" if largest == math.inf else f"from {smallest} to {largest}"
        raise ValueError(
            f"`{name}` must be a whole number, or several, {bounds}. Received: {name}={value!r}"
        )
    return numbers


def labelled(x: Any, y: Any, batch_size: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Data as a list of batches of images and integer labels, NumPy arrays.

    Args:
        x: An array of images, with `y`, or batches of `(x, y)`: a `PyDataset`, a
            `tf.data.Dataset`, a `DataLoader`, a generator that ends.
        y: Integer labels `(count,)` or `(count, 1)`; `None` with batches.
        batch_size: Images in a batch of an array.

    Returns:
        List of pairs. A batch has at least one image.

    Raises:
        ValueError: For anything else.
    """
    (batch_size,) = whole_numbers(batch_size, "batch_size", 1)
    pairs: Any
    if y is not None:
        x, y = np.asarray(ops.convert_to_numpy(x)), np.asarray(ops.convert_to_numpy(y))
        if len(x) != len(y):
            raise ValueError(
                "`x` and `y` must be as many images as labels. "
                f"Received: {len(x)} images, {len(y)} labels"
            )
        pairs = (
            (x[i : i + batch_size], y[i : i + batch_size]) for i in range(0, len(x), batch_size)
        )
    elif hasattr(x, "shape"):
        raise ValueError(
            "`y` must be the labels of an array of images. "
            f"Received: y=None with x of shape {tuple(x.shape)}"
        )
    elif isinstance(x, keras.utils.PyDataset):
        pairs = (x[index] for index in range(len(x)))
    else:
        pairs = x
    batches = []
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) < 2:
            raise ValueError(
                "Batches must be pairs of images and labels. "
                f"Received: a batch of type {type(pair).__name__}"
            )
        images, labels = (np.asarray(ops.convert_to_numpy(part)) for part in pair[:2])
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.shape != (len(images),) or labels.dtype.kind not in "iu":
            raise ValueError(
                "Labels must be integers, one for each image. "
                f"Received: labels of shape {labels.shape} and type {labels.dtype} for "
                f"{len(images)} images"
            )
        if len(images):
            batches.append((images, labels))
    if not batches:
        raise ValueError("The data must have at least one image. Received: none")
    return batches
