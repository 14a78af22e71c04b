"""A residual function of few hidden neurons, whose constants are known."""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="mf_zoo")
class ResidualUnit(keras.layers.Layer):
    """`f(x) = activation(x A) B`: a residual function of `width` hidden neurons, without bias.

    The smallest residual function that the mean-field theory speaks of, for experiments on stages
    of the form of `mf_zoo.layers.MeanFieldStage(ResidualUnit(1), n)`. It is linear in `B`, which it
    names in `output_scale_variables`. (For a bias give the state a coordinate that starts at 1.)

    Args:
        width: Number of hidden neurons.
        activation: Applied to the hidden neurons.
        kernel_initializer: Initializer of `A` and `B`.
        **kwargs: Keyword arguments of `keras.layers.Layer`.

    Input and output shape:
        `(batch, ..., features)`.

    Source: Lu, Ma, Lu, Lu, Ying, *A Mean-field Analysis of Deep ResNet and Beyond*, ICML 2020,
    arXiv 2003.05508.

    Example:

    >>> unit = mf_zoo.theory.ResidualUnit(2)
    >>> keras.ops.shape(unit(keras.ops.ones((5, 3))))
    (5, 3)
    >>> [tuple(weight.shape) for weight in unit.weights]
    [(3, 2), (2, 3)]
    """

    def __init__(
        self,
        width: int,
        activation: Any = "tanh",
        kernel_initializer: Any = "glorot_normal",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"`width` must be a positive integer. Received: width={width!r}")
        self.width = width
        self.activation = keras.activations.get(activation)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    @property
    def output_scale_variables(self) -> list[Any]:
        """Variables in which the output is linear: scaling them scales the output."""
        return [self.outer]

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        features = input_shape[-1]
        shapes = {"inner": (features, self.width), "outer": (self.width, features)}
        for name, shape in shapes.items():
            initializer = self.kernel_initializer
            if isinstance(initializer, keras.initializers.Initializer):
                initializer = initializer.clone()  # one without a seed draws the same each time
            setattr(self, name, self.add_weight(shape=shape, initializer=initializer, name=name))

    def call(self, inputs: Any) -> Any:
        return ops.matmul(self.activation(ops.matmul(inputs, self.inner)), self.outer)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "width": self.width,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }
