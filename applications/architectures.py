"""Residual networks as descriptions, with their sizes in closed form. No Keras."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mf_zoo.chains import SHORTCUTS, Chain, Weights, batch_normalization, strided

if TYPE_CHECKING:
    import keras


@dataclasses.dataclass(frozen=True)
class Stem:
    """What comes before the first stage: a convolution.

    Args:
        filters: Number of channels that it makes.
        kernel_size: Size of its kernel.
        strides: Its stride.
        pooling: Whether max pooling of 3 x 3 pixels with stride 2 follows, as in networks for
            images of 224 pixels.
    """

    filters: int
    kernel_size: int = 3
    strides: int = 1
    pooling: bool = False


@dataclasses.dataclass(frozen=True)
class Normalization:
    """How every BatchNormalization of a network is set.

    Args:
        momentum: Momentum of the moving averages.
        epsilon: Added to the variance. (At least 1.001e-5 where cuDNN's kernel is to take it on
            TensorFlow.)
    """

    momentum: float = 0.9
    epsilon: float = 1.001e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """A residual network as data, but for the number of classes.

    `mf_zoo.applications.register` makes two networks of it: `name`, whose times are fixed on the
    grid, and `MF` and `name`, whose times are learned.

    Args:
        name: Name of the plain network, such as `"ResNet20"`.
        title: What people call it, such as `"ResNet-20"`.
        source: The publication it is from, for the documentation.
        block: Kind of its residual function: a `mf_zoo.chains.Chain`, or the class of a layer. A
            layer takes `filters`, `momentum`, `epsilon` and, where it starts a stage, `strides`; it
            may have the attributes `expansion` and `preactivation` of a chain. One with
            `preactivation` also takes `first_activation`.
        filters: `filters` of the residual function, a number a stage.
        blocks: Number of residual blocks, a number a stage, the entry block included.
        stem: What comes before the first stage.
        normalization: How every BatchNormalization is set.
        block_arguments: Further arguments of the residual function.
        shortcut: What the shortcut of an entry block is: `"projection"`, a convolution of 1 x 1
            pixels (option B of He et al.), or `"identity"`: the input, with every other row and
            column where the stage is strided, between channels of zeros (option A). It has no
            weights.
        image_shape: Default `(rows, cols, channels)` of images.
        purpose: What it is made for, for the documentation.

    Raises:
        ValueError: For numbers that make no network.

    Example:

    >>> architecture = mf_zoo.applications.architecture("ResNet20")
    >>> architecture.blocks, architecture.particles
    ((3, 3, 3), (3, 2, 2))
    >>> architecture.parameters(), architecture.multiply_adds()
    (274049, 40813184)
    """

    name: str
    title: str
    source: str
    block: "Chain | type[keras.layers.Layer]"
    filters: tuple[int, ...]
    blocks: tuple[int, ...]
    stem: Stem
    normalization: Normalization = Normalization()
    block_arguments: Mapping[str, int] = dataclasses.field(default_factory=dict, hash=False)
    shortcut: str = "projection"
    image_shape: tuple[int, int, int] = (32, 32, 3)
    purpose: str = "CIFAR"

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name.isidentifier()):
            raise ValueError(f"`name` must be a Python name. Received: name={self.name!r}")
        for field in ("filters", "blocks"):
            value = getattr(self, field)
            if not value or not all(isinstance(part, int) and part > 0 for part in value):
                raise ValueError(
                    f"`{field}` must be positive integers, one a stage. Received: {field}={value!r}"
                )
            object.__setattr__(self, field, tuple(value))
        if len(self.filters) != len(self.blocks):
            raise ValueError(
                "`filters` and `blocks` must have a number for each stage. "
                f"Received: filters={self.filters}, blocks={self.blocks}"
            )
        if self.shortcut not in SHORTCUTS:
            raise ValueError(
                '`shortcut` must be "projection" or "identity". '
                f"Received: shortcut={self.shortcut!r}"
            )
        widths = (self.stem.filters, *self.channels)
        if self.shortcut == "identity" and list(widths) != sorted(widths):
            raise ValueError(
                '`shortcut="identity"` adds channels and needs stages with at least as many as '
                f"before. Received: {', '.join(map(str, widths))} channels"
            )
        if min(self.particles) < 1:
            raise ValueError(
                "Each stage must have a block that keeps the shape, after the entry block that "
                f"changes it. Received: blocks={self.blocks}, of which {self.particles} keep it"
            )

    @property
    def chain(self) -> Chain | None:
        """The residual function as data; `None` for a layer that does not say its `kind`."""
        return self.block if isinstance(self.block, Chain) else getattr(self.block, "kind", None)

    @property
    def block_name(self) -> str:
        """Name of the residual function's class."""
        return self.block.layer if isinstance(self.block, Chain) else self.block.__name__

    @property
    def preactivation(self) -> bool:
        """Whether BatchNormalization and ReLU come before the convolutions."""
        return getattr(self.block, "preactivation", False)

    @property
    def channels(self) -> tuple[int, ...]:
        """Number of output channels of each stage."""
        expansion = getattr(self.block, "expansion", 1)
        return tuple(expansion * filters for filters in self.filters)

    @property
    def has_entry(self) -> tuple[bool, ...]:
        """For each stage whether it starts with an entry block, which changes the shape."""
        first = self.channels[0] != self.stem.filters
        return (first, *(True for _ in self.filters[1:]))

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride with which each stage starts."""
        return (1, *(2 for _ in self.filters[1:]))

    @property
    def particles(self) -> tuple[int, ...]:
        """Number of particles of each stage: its blocks but for the entry block."""
        return tuple(
            blocks - entry for blocks, entry in zip(self.blocks, self.has_entry, strict=True)
        )

    def with_particles(self, particles: Sequence[int]) -> "Architecture":
        """The same network at another depth, of the same name.

        Args:
            particles: Number of particles of each stage.

        Returns:
            An `Architecture`.

        Raises:
            ValueError: For another number of stages, or a stage without a particle.

        Example:

        >>> mf_zoo.applications.architecture("ResNet20").with_particles((9, 8, 8)).blocks
        (9, 9, 9)
        """
        blocks = tuple(
            count + entry for count, entry in zip(particles, self.has_entry, strict=False)
        )
        if len(blocks) != len(particles):
            blocks = tuple(particles)  # refused for its length
        return dataclasses.replace(self, blocks=blocks)

    def is_depth_of(self, other: "Architecture") -> bool:
        """Whether two networks are the same but for their depth and name.

        Args:
            other: The other one.

        Example:

        >>> deep, deeper, other = map(
        ...     mf_zoo.applications.architecture, ("ResNet20", "ResNet110", "ResNet164")
        ... )
        >>> deep.is_depth_of(deeper), deep.is_depth_of(other)
        (True, False)
        """
        said = ("name", "title", "source", "purpose", "image_shape")
        same = {key: getattr(self, key) for key in said} | {"blocks": self.blocks}
        return len(self.blocks) == len(other.blocks) and self == dataclasses.replace(other, **same)

    def stage_shapes(
        self, image_shape: tuple[int, int, int] | None = None
    ) -> list[tuple[int, int, int]]:
        """The shape `(rows, cols, channels)` of each stage's output.

        Args:
            image_shape: That of the images; `None` for the network's own.

        Returns:
            A list of shapes.

        Example:

        >>> mf_zoo.applications.architecture("ResNet20").stage_shapes((64, 64, 3))
        [(64, 64, 16), (32, 32, 32), (16, 16, 64)]
        """
        size = self._after_stem(image_shape or self.image_shape)
        shapes = []
        for strides, channels in zip(self.strides, self.channels, strict=True):
            size = strided(*size, strides)
            shapes.append((*size, channels))
        return shapes

    def weights(
        self,
        classes: int | None = 10,
        *,
        mean_field: bool = True,
        image_channels: int | None = None,
    ) -> Weights:
        """The numbers of weights: of those that are trained, and of the others.

        Args:
            classes: Number of classes; `None` for the network without the top.
            mean_field: Whether its times are learned. In a plain network they are among the others.
            image_channels: Number of channels of images; `None` for that of `image_shape`.

        Returns:
            A pair `trained`, `others`.

        Raises:
            ValueError: For a `block` that does not say its chain.

        Example:

        >>> mf_zoo.applications.architecture("ResNet20").weights()
        Weights(trained=272481, others=1568)
        """
        channels = image_channels or self.image_shape[-1]
        total = Weights(self.stem.kernel_size**2 * channels * self.stem.filters)
        if not self.preactivation:
            total += batch_normalization(self.stem.filters)
        for stage, (chain, channels) in enumerate(self._stages()):
            outputs, particles = self.channels[stage], self.particles[stage]
            if self.has_entry[stage]:
                projected = self.shortcut == "projection"
                if projected:
                    total += (channels * outputs, 0)  # the convolution of the shortcut
                if self.preactivation:
                    total += batch_normalization(channels)
                elif projected:
                    total += batch_normalization(outputs)
                total += chain.weights(
                    channels, self.filters[stage], first_activation=False, **self.block_arguments
                )
            block = chain.weights(outputs, self.filters[stage], **self.block_arguments)
            total += block.times(particles)
            total += (particles, 0) if mean_field else (0, particles)
        if self.preactivation:
            total += batch_normalization(self.channels[-1])
        if classes is not None:
            total += ((self.channels[-1] + 1) * classes, 0)
        return total

    def parameters(self, classes: int | None = 10, *, image_channels: int | None = None) -> int:
        """The number of weights, trained or not, as `model.count_params()` counts them.

        Args:
            classes, image_channels: As in `weights`.

        Returns:
            The number.

        Raises:
            ValueError: As in `weights`.
        """
        return sum(self.weights(classes, image_channels=image_channels))

    def multiply_adds(
        self, image_shape: tuple[int, int, int] | None = None, classes: int | None = 10
    ) -> int:
        """Multiply-adds for one image, as `mf_zoo.applications.multiply_adds` counts them.

        Those of stages whose integrator evaluates each block once, as Euler's method does.

        Args:
            image_shape: `(rows, cols, channels)` of images; `None` for the network's own.
            classes: Number of classes; `None` for the network without the top.

        Returns:
            The number.

        Raises:
            ValueError: As in `weights`.
        """
        image_shape = image_shape or self.image_shape
        size = strided(*image_shape[:2], self.stem.strides)
        total = math.prod(size) * self.stem.kernel_size**2 * image_shape[-1] * self.stem.filters
        size = self._after_stem(image_shape)
        for stage, (chain, channels) in enumerate(self._stages()):
            filters, strides = self.filters[stage], self.strides[stage]
            outputs, arguments = self.channels[stage], self.block_arguments
            entered = strided(*size, strides)
            if self.has_entry[stage]:
                if self.shortcut == "projection":
                    total += math.prod(entered) * channels * outputs
                total += chain.multiply_adds(*size, channels, filters, strides=strides, **arguments)
            size = entered
            block = chain.multiply_adds(*size, outputs, filters, **arguments)
            total += self.particles[stage] * block
        return total + (0 if classes is None else self.channels[-1] * classes)

    def _stages(self) -> Iterator[tuple[Chain, int]]:
        """For each stage the chain of its blocks and the number of channels that enter it."""
        if self.chain is None:
            raise ValueError(
                "`block` must be a Chain, or a layer whose class has one as its `kind`, for counts "
                "without Keras; of a built network take `model.count_params()`. "
                f"Received: block={self.block_name}"
            )
        for channels in (self.stem.filters, *self.channels[:-1]):
            yield self.chain, channels

    def _after_stem(self, image_shape: tuple[int, int, int]) -> tuple[int, int]:
        size = strided(*image_shape[:2], self.stem.strides)
        return strided(*size, 2) if self.stem.pooling else size
