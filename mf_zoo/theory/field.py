"""The derivative of a loss with respect to the measure that a stage stands for."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.layers import MeanFieldStage
from mf_zoo.theory import autodiff
from mf_zoo.theory.costate import as_array, integrate

# Near enough to 0 for the derivative there, and to the side on which step sizes lie: half of the
# states after a ReLU are 0, where automatic differentiation would take the derivative on the other.
_FROM_THE_RIGHT = 1e-6


def gradient_field(
    stage: MeanFieldStage,
    x: Any,
    cotangent: Any | Callable[[Any], Any],
    weights: Sequence[Sequence[np.ndarray]],
    times: Sequence[float],
    training: bool = False,
) -> np.ndarray:
    """The derivative of the loss with respect to the measure, at points `(theta, t)`.

        `(dE / drho)(theta, t) = E_x <p(t), f(X(t), theta)>`

    says by how much the loss changes for each unit of step size that a new particle with weights
    `theta` at time `t` gets: where it is negative, a block lowers the loss. Gradient descent moves
    each particle against the gradient of this field.

    In a stage the state jumps at the times of its particles, so two cases are told apart:

    - `t` lies between the times of particles (or before the first, after the last). The new
      particle is a block of its own there: it sees the state after the particles before it. The
      derivative is that of a positive step: a ReLU that stands at 0 lets pass what is positive.
    - `t` is the time of a particle. The new particle shares its step, `X^l = activation(X^(l-1) +
      dt_l f(X^(l-1), theta^l) + eps f(X^(l-1), theta))` (with other integrators all evaluations of
      `f` in it): it sees the state before the step, and the costate is the one after it, carried
      back through the activation, `(d activation)^T p^l`. Of several at the same time it is the
      first in depth order. So at a particle's own point the field is the derivative of the loss
      with respect to its step size, and with Euler's method the gradient of its weights is `dt`
      times the gradient of the field. (Without `reorder` the block at depth `l` has the `l`-th
      smallest time.)

    Args:
        stage: The stage.
        x: Float array `(batch, ...)`, the input of the stage.
        cotangent: As of `adjoint`. The mean `E_x` is in it.
        weights: For each point, arrays as `Block.weights` lists them; they may be of any stage of
            equal blocks. Statistics are among them.
        times: For each point, a time in `[0, T]`.
        training: Whether blocks run in training mode.

    Returns:
        Array `(points,)`, in units of the loss by those of time.

    Raises:
        ValueError: For weights that do not fit, times out of range, and times between particles
            where the activation changes the state: there even a block of step 0 would.

    Source: Lu, Ma, Lu, Lu, Ying, *A Mean-field Analysis of Deep ResNet and Beyond*, ICML 2020,
    arXiv 2003.05508 (the functional derivative by the adjoint). The two cases are ours.

    Example:

    >>> from mf_zoo.theory import gradient_field
    >>> stage = MeanFieldStage(keras.layers.Dense(1, kernel_initializer="zeros"), 2)
    >>> doubling = [np.array([[2.0]]), np.array([0.0])]  # f(x) = 2 x
    >>> gradient_field(stage, np.array([[3.0]]), np.ones((1, 1)), [doubling], [0.5]).tolist()
    [6.0]
    """
    x = stage._prepared(x)
    stage._check_weights(weights, count=len(weights))
    dtype = keras.backend.standardize_dtype(stage.times.dtype)
    points = np.asarray(times, dtype)
    if points.shape != (len(weights),) or not np.all((points >= 0) & (points <= stage.horizon)):
        raise ValueError(
            f"`times` must hold a time in [0, {stage.horizon}] for each of the {len(weights)} "
            f"blocks in `weights`. Received: times={times!r}"
        )
    blocks, states, costates, _ = integrate(stage, x, cotangent, training)
    ticks = np.sort(ops.convert_to_numpy(stage.times.value))
    result = np.zeros(len(points))
    for number, (values, time) in enumerate(zip(weights, points, strict=True)):
        values = [
            ops.convert_to_tensor(value, variable.dtype)
            for value, variable in zip(values, stage._stacked, strict=True)
        ]
        place = int(np.searchsorted(ticks, time))  # the number of particles before
        shared = place < len(ticks) and ticks[place] == time
        if not shared:
            _check_rests(stage, states[place], time)

        def state_after(eps: Any, values: Any = values, place: Any = place, shared: Any = shared):
            new = blocks.update(values, ops.ones(()))
            own = blocks.update(blocks.values[place], blocks.steps[place]) if shared else None

            def update(z: Any) -> Any:
                added = ops.cast(eps, z.dtype) * new(z)
                return added if own is None else own(z) + added

            return stage.integrator(states[place], update, stage.activation)

        at = ops.convert_to_tensor(0.0 if shared else _FROM_THE_RIGHT, "float32")
        _, (slope,) = autodiff.vjp(state_after, [at], costates[place + shared])
        result[number] = float(as_array(slope))
    return result


def _check_rests(stage: MeanFieldStage, state: Any, time: float) -> None:
    """That a block of step 0 at this state would leave it as it is."""
    if not bool(ops.all(stage.activation(state) == state)):
        raise ValueError(
            "Between the times of particles the field is defined where the activation leaves the "
            "state as it is; there are no such states after one like tanh, nor before the first "
            "particle if the input has not passed through the activation. "
            f"Received: time {time:.6g} and activation {stage.activation.__name__!r} in stage "
            f"{stage.name!r}, whose particles have the times "
            f"{ops.convert_to_numpy(stage.times.value).tolist()}"
        )
