"""States computed backwards from the last, as continuous adjoint methods do, and their error."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.layers import MeanFieldStage
from mf_zoo.theory.costate import as_array


@dataclasses.dataclass(frozen=True, eq=False)
class Reconstruction:
    """States of a stage that were computed backwards.

    Args:
        states: Array `(n + 1, batch, ...)` in depth order. The last is the stage's output.
        errors: Array `(n + 1,)`, the norm of the difference to the true state in units of the norm
            of the true one; infinite where the computation broke down.
    """

    states: np.ndarray
    errors: np.ndarray


def reconstruct(
    stage: MeanFieldStage, x: Any, iterations: int = 1, training: bool = False
) -> Reconstruction:
    """Computes the states of a stage from its output, from the last to the first.

    A continuous adjoint method keeps no states: it solves `dX/dt = f` backwards beside the
    costate's equation. With Euler's method that is `X^(l-1) = X^l - dt_l f(X^l, theta^l)`, which
    undoes a step up to an error of order `dt^2`. It is also the first of the fixed-point iterations

        `X <- X^l - dt_l f(X, theta^l)`,

    which converge to the true state where `dt_l f` is a contraction, and there alone. What an
    activation after a step has cut off cannot come back: the activation is left out here.

    Args:
        stage: The stage.
        x: Float array `(batch, ...)`, the input of the stage: from it come the true states.
        iterations: Number of fixed-point iterations for each block; 1 to step backwards.
        training: Whether blocks run in training mode.

    Returns:
        The `Reconstruction`.

    Raises:
        ValueError: If `iterations` is less than 1.

    Source: Chen, Rubanova, Bettencourt, Duvenaud, *Neural Ordinary Differential Equations*, NeurIPS
    2018, arXiv 1806.07366 (states solved backwards); Gholami, Keutzer, Biros, *ANODE*, IJCAI 2019,
    arXiv 1902.10298 (that they may be far off); Behrmann, Grathwohl, Chen, Duvenaud, Jacobsen,
    *Invertible Residual Networks*, ICML 2019, arXiv 1811.00995 (the fixed-point iteration).

    Example:

    >>> from mf_zoo.theory import reconstruct
    >>> halving = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(-0.5))
    >>> stage = MeanFieldStage(halving, 1)  # 4 -> 4 - 4 / 2
    >>> [round(float(reconstruct(stage, np.array([[4.0]]), k).states[0, 0, 0]), 3) for k in (1, 2)]
    [3.0, 3.5]
    """
    if not isinstance(iterations, int) or iterations < 1:
        raise ValueError(
            f"`iterations` must be an integer of at least 1. Received: iterations={iterations!r}"
        )
    true = [as_array(ops.stop_gradient(state)) for state in stage.states(x, training)]
    state = ops.convert_to_tensor(true[-1])
    states = [true[-1]]
    for position in reversed(range(stage.num_particles)):

        def change(z: Any, position: int = position) -> Any:
            def update(z: Any) -> Any:
                return ops.stop_gradient(stage.update(z, position, training))

            z = ops.cast(z, stage.compute_dtype)
            return stage.integrator(z, update, keras.activations.linear) - z

        after = state
        for _ in range(iterations):
            state = after - ops.cast(change(state), after.dtype)
        states.insert(0, as_array(state))
    errors = []
    for got, want in zip(states, true, strict=True):
        with np.errstate(all="ignore"):
            error = np.linalg.norm((got - want).astype("float64")) / np.linalg.norm(want)
        errors.append(error if np.isfinite(error) else np.inf)
    return Reconstruction(np.stack(states), np.array(errors))
