"""How much a network computes."""

import math
from typing import Any

import keras

from mf_zoo.layers import MeanFieldStage
from mf_zoo.layers.integrators import evaluations
from mf_zoo.layers.residual_function import ResidualFunction


def multiply_adds(model: keras.Model) -> int:
    """Multiply-adds of a network for one image: what papers give as its FLOPs.

    Those of convolutions and dense layers, of a block once for each evaluation that the stage's
    integrator makes; a floating-point operation of a multiplication and an
    addition is counted once, and what BatchNormalization, activations and sums take is left out,
    as is usual.

    Args:
        model: A functional or sequential model whose input has a fixed size.

    Returns:
        The number.

    Raises:
        ValueError: For an input of variable size, or a part that is no layer of the zoo or of
            the kinds that networks of the zoo are made of.

    Example:

    >>> mf_zoo.applications.multiply_adds(mf_zoo.applications.MFResNet20())
    40813184
    """
    if any(side is None for side in model.input_shape[1:]):
        raise ValueError(
            "The input of `model` must be of a fixed size. "
            f"Received: input_shape={model.input_shape}"
        )
    return sum(_of_layer(layer, layer.input.shape) for layer in model.layers if layer.weights)


def _of_layer(layer: keras.layers.Layer, shape: tuple[Any, ...]) -> int:
    if isinstance(layer, keras.Model):
        return multiply_adds(layer)
    if isinstance(layer, MeanFieldStage):
        steps = layer.num_particles * evaluations(layer.integrator)
        return steps * _of_layer(layer.template(), shape)
    if isinstance(layer, ResidualFunction):
        total = 0
        for part in layer.chain():
            total += _of_layer(part, shape)
            shape = part.compute_output_shape(shape)
        return total
    if isinstance(layer, keras.layers.Conv2D):
        outputs = math.prod(layer.compute_output_shape(shape)[1:])
        return outputs * math.prod(layer.kernel.shape[:-1])
    if isinstance(layer, keras.layers.Dense):
        return math.prod(shape[1:-1]) * math.prod(layer.kernel.shape)
    if not layer.weights or isinstance(
        layer, (keras.layers.BatchNormalization, keras.layers.Normalization)
    ):
        return 0
    raise ValueError(
        "`model` must be made of convolutions, dense layers, normalization, mean-field stages and "
        f"layers without weights. Received: {layer!r}"
    )
