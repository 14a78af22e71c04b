"""What the convolutional residual functions of the zoo have in common."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from mf_zoo.chains import Convolution
from mf_zoo.layers.batch_normalization import BatchNormalization
from mf_zoo.layers.conv2d import Conv2D
from mf_zoo.layers.grouped_conv2d import GroupedConv2D


class ResidualFunction(layers.Layer):
    """A chain of convolutions, each with BatchNormalization: `f` in `x + f(x)`, without the sum.

    Post-activation: `conv, BN, ReLU, conv, BN, ..., conv, BN`; pre-activation:
    `BN, ReLU, conv, BN, ReLU, conv, ..., conv`. Either way the output is linear in the variables
    of its last layer, which `output_scale_variables` names, so that a stage can multiply `f` by a
    step size at no cost. A convolution of stride 2 pads its input on all sides alike, as PyTorch
    does, so that it stays aligned with the 1x1 convolution of a shortcut.

    Args:
        convolutions: The chain, from input to output.
        preactivation: Whether BatchNormalization and ReLU come before their convolution.
        first_activation: With `preactivation`, whether the chain starts with them; without, the
            input must be normalised and activated already.
        kernel_initializer, momentum, epsilon, data_format: As in `BasicBlock`.
        **kwargs: Keyword arguments of `keras.layers.Layer`.
    """

    def __init__(
        self,
        convolutions: Sequence[Convolution],
        preactivation: bool,
        first_activation: bool = True,
        kernel_initializer: Any = "he_normal",
        momentum: float = 0.9,
        epsilon: float = 1.001e-5,
        data_format: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.momentum = momentum
        self.epsilon = epsilon
        self.data_format = data_format or keras.config.image_data_format()
        self.preactivation = preactivation
        self.first_activation = bool(first_activation)
        # Names, not layers: a list of layers would be a second way to them in weight files.
        self._names: list[str] = []
        for number, convolution in enumerate(convolutions, start=1):
            normalizes = not preactivation or self.first_activation or number > 1
            if preactivation and normalizes:
                self._append(f"bn{number}", self._normalization())
                self._append(f"relu{number}", layers.ReLU(dtype=self.dtype_policy))
            if convolution.strides > 1 and convolution.kernel_size > 1:
                padding = layers.ZeroPadding2D(
                    convolution.kernel_size // 2,
                    data_format=self.data_format,
                    dtype=self.dtype_policy,
                )
                self._append(f"pad{number}", padding)
            self._append(f"conv{number}", self._convolution(convolution))
            if not preactivation:
                self._append(f"bn{number}", self._normalization())
                if number < len(convolutions):
                    self._append(f"relu{number}", layers.ReLU(dtype=self.dtype_policy))

    @staticmethod
    def check(**arguments: Any) -> None:
        """Raises ValueError unless all arguments are positive integers."""
        for name, value in arguments.items():
            if isinstance(value, bool) or not (isinstance(value, int) and value > 0):
                raise ValueError(f"`{name}` must be a positive integer. Received: {name}={value!r}")

    def _append(self, name: str, layer: layers.Layer) -> None:
        layer.name = name
        if not self.trainable:  # set by the constructor, when there were no parts yet
            layer.trainable = False
        setattr(self, name, layer)
        self._names.append(name)

    def chain(self) -> list[layers.Layer]:
        """The layers, from input to output."""
        return [getattr(self, name) for name in self._names]

    def _normalization(self) -> layers.Layer:
        return BatchNormalization(
            axis=1 if self.data_format == "channels_first" else -1,
            momentum=self.momentum,
            epsilon=self.epsilon,
            dtype=self.dtype_policy,
        )

    def _convolution(self, convolution: Convolution) -> layers.Layer:
        kind = GroupedConv2D if convolution.groups > 1 else Conv2D
        arguments = {"groups": convolution.groups} if convolution.groups > 1 else {}
        symmetric = convolution.strides > 1 and convolution.kernel_size > 1
        initializer = self.kernel_initializer
        if isinstance(initializer, keras.initializers.Initializer):
            # Its own copy: an initializer without a seed draws the same values each time.
            initializer = initializer.clone()
        return kind(
            convolution.filters,
            convolution.kernel_size,
            strides=convolution.strides,
            padding="valid" if symmetric else "same",
            use_bias=False,
            kernel_initializer=initializer,
            data_format=self.data_format,
            dtype=self.dtype_policy,
            **arguments,
        )

    @property
    def output_scale_variables(self) -> list[Any]:
        """Variables in which the output is linear: scaling them all scales the output."""
        last = self.chain()[-1]
        return [last.kernel] if self.preactivation else [last.gamma, last.beta]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        for layer in self.chain():
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        x = inputs
        for layer in self.chain():
            arguments = {"training": training} if isinstance(layer, BatchNormalization) else {}
            x = layer(x, **arguments)
        return x

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        for layer in self.chain():
            input_shape = layer.compute_output_shape(input_shape)
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        config = {
            **super().get_config(),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "data_format": self.data_format,
        }
        if self.preactivation:
            config["first_activation"] = self.first_activation
        frozen = [part.name for part in self.chain() if not part.trainable]
        if frozen != ([] if self.trainable else self._names):
            config["frozen_parts"] = frozen
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ResidualFunction":
        """Makes the layer; `"frozen_parts"` names its layers that are frozen by themselves."""
        config = dict(config)
        frozen = config.pop("frozen_parts", None)
        block = super().from_config(config)
        if frozen is not None:
            for part in block.chain():
                part.trainable = part.name not in frozen
        return block
