"""Builders of networks, in the convention of `keras.applications`. No Keras until one is called."""

import inspect
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mf_zoo.applications.architectures import Architecture

if TYPE_CHECKING:
    import keras

    from mf_zoo.layers import Integrator, QuadratureRule

_ENDINGS = (".h5", ".weights.json")  # of files of weights and of indices of their shards


class PlainBuilder:
    """Makes a plain network: residual blocks in a fixed order, every step size 1.

    Args:
        architecture: The network.
    """

    mean_field = False

    def __init__(self, architecture: Architecture):
        self.architecture = architecture
        self.__name__ = self.__qualname__ = architecture.name
        self.__module__ = "mf_zoo.applications"
        title = architecture.title[0].upper() + architecture.title[1:]
        self.__doc__ = _documentation(
            self,
            f"{title} for {architecture.purpose}: the plain twin of "
            f"`{_mean_field_name(architecture)}`.\n\n"
            "The same code with times fixed on the grid, so that every step size is 1.",
            PlainBuilder.__call__.__doc__,
        )

    def __repr__(self) -> str:
        return f"<builder {self.__module__}.{self.__name__}>"

    def __reduce__(self) -> Any:
        # Found by name where it is unpickled.
        from mf_zoo.applications.registry import get

        return get, (self.__name__,)

    def __call__(
        self,
        include_top: bool = True,
        weights: str | os.PathLike | None = None,
        input_tensor: Any = None,
        input_shape: tuple[int | None, ...] | None = None,
        pooling: str | None = None,
        classes: int | None = None,
        classifier_activation: Any = "softmax",
        name: str | None = None,
        *,
        dataset: str | None = None,
        normalization: tuple[Sequence[float], Sequence[float]] | None = None,
        remat: bool | int | str = False,
        shortcut: str | None = None,
    ) -> "keras.Model":
        """Makes the network.

        Args:
            include_top: Whether to end in global average pooling and a classifier.
            weights: `None` (random), a registered name such as `"cifar10"` (see
                `mf_zoo.weights.records()`), or the path of a `.weights.h5` file of this network
                (`.weights.json` where it is in shards). Registered weights also load into another
                number of `classes` or without the top: the body is then loaded and the classifier
                starts afresh.
            input_tensor: Keras tensor to use as images; `None` for a new input.
            input_shape: `(rows, cols, channels)`, or channels first where Keras is set so; rows and
                cols are pixels, at least 8, or `None`; there are as many channels as numbers in the
                mean. `None` for the shape of the dataset's images, else the network's own.
            pooling: Without the top: `None` for a feature map, `"avg"` or `"max"` for a vector.
            classes: Number of classes; `None` for that of the dataset, else that of the registered
                weights, else 10.
            classifier_activation: Activation of the scores; `None` for logits.
            name: Name of the model; `None` for its own.
            dataset: Name of a dataset (`mf_zoo.data.names()`) whose number of classes, image shape,
                mean and standard deviation are used. Registered weights keep the mean and standard
                deviation that they were trained with.
            normalization: Mean and standard deviation of images, a number for each channel, in
                units of 0..255. They come before those of the dataset and the weights; `None`
                without either for CIFAR-10's.
            remat: What is computed again in the backward pass instead of being kept, less memory
                for more work. `True` keeps the input of every block; an integer `k` keeps that of
                every `k`-th block of a stage alone; `"sqrt"` takes the root of their number for
                `k`. See `mf_zoo.layers.MeanFieldStage`.
            shortcut: Shortcut of the entry blocks: `"projection"`, or `"identity"`, with channels
                of zeros and without weights, as in the networks of He et al. for CIFAR; `None` for
                the network's own, which is `"projection"` in all of the zoo, its registered weights
                included.

        Returns:
            A `keras.Model` from images `(batch, rows, cols, channels)`, uint8 or float, 0..255
            (they are normalised inside), to float32 scores `(batch, classes)`, or to features.

        Raises:
            ValueError: For unknown weights, and arguments out of range.
        """
        from mf_zoo.applications.build import build

        return build(
            self.architecture,
            self.mean_field,
            self.__name__,
            include_top=include_top,
            weights=weights,
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            name=name,
            dataset=dataset,
            normalization=normalization,
            remat=remat,
            shortcut=shortcut,
        )


class MeanFieldBuilder(PlainBuilder):
    """Makes a mean-field network: stages of particles whose times are learned.

    Args:
        architecture: The network.
    """

    mean_field = True

    def __init__(self, architecture: Architecture):
        super().__init__(architecture)
        self.__name__ = self.__qualname__ = _mean_field_name(architecture)
        particles = ", ".join(map(str, architecture.particles))
        self.__doc__ = _documentation(
            self,
            f"Mean-field {architecture.title} for {architecture.purpose}: stages of {particles} "
            "particles.",
            PlainBuilder.__call__.__doc__,
            MeanFieldBuilder.__call__.__doc__,
            "Lu et al., *A Mean-field Analysis of Deep ResNet and Beyond*, ICML 2020",
        )

    def __call__(
        self,
        include_top: bool = True,
        weights: str | os.PathLike | None = None,
        input_tensor: Any = None,
        input_shape: tuple[int | None, ...] | None = None,
        pooling: str | None = None,
        classes: int | None = None,
        classifier_activation: Any = "softmax",
        name: str | None = None,
        *,
        quadrature: "str | QuadratureRule | None" = None,
        horizon: float | None = None,
        initial_times: str = "grid",
        reorder: bool | None = None,
        integrator: "str | Integrator | None" = None,
        dataset: str | None = None,
        normalization: tuple[Sequence[float], Sequence[float]] | None = None,
        remat: bool | int | str = False,
        shortcut: str | None = None,
    ) -> "keras.Model":
        """Makes the network. All other arguments are those of a plain network.

        Args:
            quadrature: Quadrature rule of every `mf_zoo.layers.MeanFieldStage`; `None` for that of
                the registered weights, else `"backward"`.
            horizon: Horizon `T` of every stage; `None` for that of the registered weights, else the
                stage's number of particles.
            initial_times: `"grid"` or `"random"`.
            reorder: Whether blocks are applied in the order of their times, and not in that of
                storage; `None` for as the registered weights were trained, else `True`.
            integrator: Integrator of every stage; `None` for that of the registered weights, else
                `"euler"`.

        Returns:
            A `keras.Model`, as a plain network is.
        """
        from mf_zoo.applications.build import build

        return build(
            self.architecture,
            self.mean_field,
            self.__name__,
            include_top=include_top,
            weights=weights,
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            name=name,
            quadrature=quadrature,
            horizon=horizon,
            initial_times=initial_times,
            reorder=reorder,
            integrator=integrator,
            dataset=dataset,
            normalization=normalization,
            remat=remat,
            shortcut=shortcut,
        )


def _mean_field_name(architecture: Architecture) -> str:
    return f"MF{architecture.name}"


def is_file(weights: str | os.PathLike) -> bool:
    """Whether `weights` is the path of a file, and not a registered name."""
    return isinstance(weights, os.PathLike) or os.path.sep in weights or weights.endswith(_ENDINGS)


def _documentation(
    builder: PlainBuilder,
    summary: str,
    common: str | None,
    further: str | None = None,
    source: str | None = None,
) -> str:
    """The documentation of a network in Keras's form, of its summary and of its arguments."""
    architecture = builder.architecture
    if common is None:  # Python without docstrings, -OO
        return summary
    sections = _sections(common)
    arguments = sections["Args"] + (_sections(further)["Args"] if further else "")
    sources = "; ".join(filter(None, (architecture.source, source)))
    shape = f"(None, {', '.join(map(str, architecture.image_shape))})"
    return (
        f"{summary}\n\nArgs:\n{arguments}\n\nReturns:\n{sections['Returns']}\n\n"
        f"Raises:\n{sections['Raises']}\n\nSource: {sources}.\n\nExample:\n\n"
        f">>> mf_zoo.applications.{builder.__name__}().input_shape\n{shape}\n"
    )


def _sections(text: str) -> dict[str, str]:
    """The sections of a docstring by title, indented by four."""
    sections: dict[str, str] = {}
    title = ""
    for line in inspect.cleandoc(text).splitlines():
        if line and not line.startswith(" ") and line.endswith(":"):
            title = line[:-1]
            sections[title] = ""
        elif title and line:
            sections[title] += ("\n" if sections[title] else "") + line
    return sections
