"""Derivatives on whichever backend is active: Keras has no function for them."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops


def vjp(
    function: Callable[..., Any],
    inputs: Sequence[Any],
    cotangent: Any | Callable[[Any], Any] | None = None,
) -> tuple[Any, list[Any]]:
    """The value of a function and the product of a cotangent with its Jacobian.

    Args:
        function: Takes the inputs, tensors, and returns one tensor. What it reads besides them
            counts as constant, except variables: see `variables_vjp`.
        inputs: Float tensors, the point.
        cotangent: A tensor of the shape of the value, or a function that makes one from the value;
            `None` for ones, which for a scalar gives its gradient.

    Returns:
        The value, and for each input a tensor of its shape. Of an input that the function does not
        use it is zero.

    Example:

    >>> from mf_zoo.theory import autodiff
    >>> value, (slope,) = autodiff.vjp(lambda x: x**3, [keras.ops.convert_to_tensor(2.0)])
    >>> float(value), float(slope)
    (8.0, 12.0)
    """
    inputs = [ops.convert_to_tensor(x) for x in inputs]

    def seed(value: Any) -> Any:
        if cotangent is None:
            return ops.ones_like(value)
        given = cotangent(ops.stop_gradient(value)) if callable(cotangent) else cotangent
        return ops.cast(ops.convert_to_tensor(given), value.dtype)

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inputs)
            value = function(*inputs)
        found = tape.gradient(
            value,
            inputs,
            output_gradients=seed(value),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        return value, [tf.convert_to_tensor(gradient) for gradient in found]
    if backend == "jax":
        import jax

        value, pullback = jax.vjp(function, *inputs)
        return value, list(pullback(seed(value)))
    import torch

    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    with torch.enable_grad():
        value = function(*inputs)
    if not value.requires_grad:  # it uses none of them
        return value, [torch.zeros_like(x) for x in inputs]
    found = torch.autograd.grad(value, inputs, seed(value), allow_unused=True)
    zeros = zip(found, inputs, strict=True)
    return value.detach(), [torch.zeros_like(x) if g is None else g for g, x in zeros]


def variables_vjp(
    function: Callable[[], Any],
    variables: Sequence[keras.Variable],
    cotangent: Any | Callable[[Any], Any] | None = None,
) -> tuple[Any, list[Any]]:
    """The same as `vjp`, with respect to variables that a function reads.

    No variable changes: what the function assigns to them, such as statistics in training mode, is
    dropped.

    Args:
        function: Takes nothing and returns one tensor.
        variables: Those to derive by.
        cotangent: As of `vjp`.

    Returns:
        The value, and for each variable a tensor of its shape.

    Example:

    >>> from mf_zoo.theory import autodiff
    >>> v = keras.Variable(3.0)
    >>> value, (slope,) = autodiff.variables_vjp(lambda: v * v, [v])
    >>> float(value), float(slope)
    (9.0, 6.0)
    """

    def of_values(*values: Any) -> Any:
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return function()

    return vjp(of_values, [variable.value for variable in variables], cotangent)
