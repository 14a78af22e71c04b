"""The constants of the theory's bounds, and the bounds beside what is measured."""

import dataclasses
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.layers import MeanFieldStage
from mf_zoo.theory import autodiff
from mf_zoo.theory.ensemble import shallow_twin
from mf_zoo.theory.residual_unit import ResidualUnit

# Of an activation: its value at 0, the bounds of its absolute value, of its first derivative and of
# its second.
_ACTIVATIONS = {
    "linear": (0.0, np.inf, 1.0, 0.0),
    "relu": (0.0, np.inf, 1.0, np.inf),
    "sigmoid": (0.5, 1.0, 1 / 4, 1 / (6 * np.sqrt(3))),
    "tanh": (0.0, 1.0, 1.0, 4 / (3 * np.sqrt(3))),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Constants:
    """What is known of the residual function of each block. Arrays are in depth order.

    Norms are Euclidean, of a single sample's states; `|df/dtheta p|` is the norm of the derivative
    of `<f(x, theta), p>` by all weights of the block. What is not known is infinite.

    Args:
        lipschitz: `(n,)`, `L`: `|f(x) - f(z)| <= L |x - z|`.
        growth: `(n,)`, `M`: `|f(x)| <= M`.
        offset: `(n,)`, `|f(0)|`.
        gradient: `(n, 2)`, `a, b`: `|df(x)/dtheta p| <= (a + b |x|) |p|`.
        gradient_lipschitz: `(n, 2)`, `a, b`: of two states that derivative differs by at most
            `(a + b |x|) |x - z| |p|`.

    Example:

    >>> n = 4  # all that is known: every block is 2-Lipschitz
    >>> unknown = np.full(n, np.inf), np.full((n, 2), np.inf)
    >>> known = mf_zoo.theory.Constants(
    ...     np.full(n, 2.0), unknown[0], unknown[0], unknown[1], unknown[1]
    ... )
    >>> lower, upper = mf_zoo.theory.costate_bounds(known, steps=np.full(n, 0.125))
    >>> float(lower[0]), float(upper[0])  # (3 / 4)^4 and (5 / 4)^4
    (0.31640625, 2.44140625)
    """

    lipschitz: np.ndarray
    growth: np.ndarray
    offset: np.ndarray
    gradient: np.ndarray
    gradient_lipschitz: np.ndarray

    @classmethod
    def of(cls, stage: MeanFieldStage) -> "Constants":
        """The constants of a stage whose residual functions are `ResidualUnit`s.

        With the spectral norms `a` of `A` and `b` of `B`, `w` hidden neurons and an activation `s`
        of `|s| <= S`, `|s'| <= D`, `|s''| <= C`: `L = D a b`, `M = sqrt(w) S b`; the derivative by
        `B` is bounded by `sqrt(w) S` and is `D a`-Lipschitz, that by `A` is bounded by `D b |x|`
        and is `D b + C a b |x|`-Lipschitz.

        Args:
            stage: A stage that has been built, of `ResidualUnit`s with the activation `"tanh"`,
                `"sigmoid"`, `"relu"` or `"linear"`.

        Returns:
            The `Constants`.

        Raises:
            ValueError: For other residual functions: give their constants yourself.
        """
        unit = stage.template() if stage.built else None
        name = keras.activations.serialize(unit.activation) if type(unit) is ResidualUnit else None
        if name not in _ACTIVATIONS:
            raise ValueError(
                "The constants are known for a built stage of ResidualUnits whose activation is "
                f"one of {', '.join(_ACTIVATIONS)}. Received: stage={stage.name!r} of "
                f"{type(unit).__name__} with activation={name!r}"
            )
        zero, bound, slope, curvature = _ACTIVATIONS[name]
        rows = []
        for block in stage.blocks():
            inner, outer = (weight.astype("float64") for weight in block.weights)
            a, b, root = np.linalg.norm(inner, 2), np.linalg.norm(outer, 2), np.sqrt(unit.width)
            by_outer = (root * bound, 0.0) if np.isfinite(bound) else (root * zero, slope * a)
            # Infinity times a weight of 0 is 0: such a function is constant.
            mixed = curvature * a * b if a * b else 0.0
            rows.append(
                (
                    slope * a * b,
                    root * bound * b if b else 0.0,
                    np.linalg.norm(np.full(unit.width, zero) @ outer),
                    (by_outer[0], by_outer[1] + slope * b),
                    (slope * np.hypot(a, b), mixed),
                )
            )
        return cls(*(np.array(column, "float64") for column in zip(*rows, strict=True)))


def costate_bounds(constants: Constants, steps: Any) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the costate `|p^l| / |p(T)|` at every depth.

    `p^(l-1) = (1 + dt_l df/dx)^T p^l`, so one block changes the norm by a factor between
    `1 - dt_l L_l` and `1 + dt_l L_l`. In the limit of small steps the products become the
    exponentials `exp(-L (T - t)) |p(T)| <= |p(t)| <= exp(L (T - t)) |p(T)|` of the theory.

    The bounds are those of stages without activation between their blocks. With one that is
    1-Lipschitz, such as a ReLU, the upper bound holds and the lower one does not: it may stop all.

    Args:
        constants: The `Constants` of the blocks.
        steps: `(n,)`, the step sizes in depth order.

    Returns:
        `(lower, upper)`, each `(n + 1,)`: entry `l` is for the costate after `l` blocks, the last
        is 1. Where a step is larger than `1 / L` the lower bound is 0.

    Source: the adjoint equation of Lu, Ma, Lu, Lu, Ying, *A Mean-field Analysis of Deep ResNet and
    Beyond*, ICML 2020, arXiv 2003.05508, with Gronwall's inequality; the discrete form is ours.

    Example: see `Constants`.
    """
    change = np.asarray(steps, "float64") * constants.lipschitz
    return (
        np.append(np.cumprod(np.maximum(1 - change, 0)[::-1])[::-1], 1.0),
        np.append(np.cumprod((1 + change)[::-1])[::-1], 1.0),
    )


def state_bounds(constants: Constants, steps: Any, inputs: Any) -> np.ndarray:
    """Upper bounds of the distance of states from the input, `|X^l - X(0)|`.

    A block moves the state by at most `dt_l min(M_l, |f_l(0)| + L_l |X^(l-1)|)`.

    Args:
        constants: The `Constants` of the blocks.
        steps: `(n,)`, the step sizes in depth order.
        inputs: `(samples,)`, the norms `|X(0)|`.

    Returns:
        `(n + 1, samples)`; the norm `|X^l|` is at most `|X(0)|` plus that.

    Source: as of `costate_bounds`.

    Example:

    >>> known = mf_zoo.theory.Constants(
    ...     np.ones(2), np.full(2, np.inf), np.zeros(2), np.ones((2, 2)), np.ones((2, 2))
    ... )
    >>> mf_zoo.theory.state_bounds(known, [0.5, 0.5], [4.0])[:, 0].tolist()
    [0.0, 2.0, 5.0]
    """
    inputs = np.asarray(inputs, "float64")
    moved = [np.zeros_like(inputs)]
    per_block = zip(steps, constants.lipschitz, constants.growth, constants.offset, strict=True)
    for step, lipschitz, growth, offset in per_block:
        speed = np.minimum(growth, offset + lipschitz * (inputs + moved[-1]))
        moved.append(moved[-1] + step * speed)
    return np.stack(moved)


def gradient_bounds(constants: Constants, steps: Any, inputs: Any, cotangents: Any) -> np.ndarray:
    """Upper bounds of the distance between the gradients of a ResNet and of its ensemble.

    Of the particle at depth `l` the two gradients, at the same cotangent `p(T)`, differ in where
    the residual function is evaluated and in the cotangent that it sees:

        `|g_l - g'_l| <= dt_l sum |p(T)| ((a + b |X(0)|) |X^(l-1) - X(0)| u_l
            + (c + d |X(0)|) (u_l - 1))`

    with `u_l` the upper bound of `costate_bounds`, the distance that of `state_bounds`, and `a, b`,
    `c, d` the constants `gradient_lipschitz` and `gradient`; the sum is over the samples. Divided
    by `|g'_l|` this bounds how far the ratio of their norms can be from 1. It is of first order in
    the horizon: gradients of the two networks agree where `T` is small.

    Args:
        constants: The `Constants` of the blocks.
        steps: `(n,)`, the step sizes in depth order.
        inputs: `(samples,)`, the norms `|X(0)|`.
        cotangents: `(samples,)`, the norms `|p(T)|` of the samples' cotangents, whose gradients add
            up: for a mean loss the factor `1 / samples` is in them.

    Returns:
        `(n,)`, in depth order.

    Source: the comparison with a two-layer network is that of Lu, Ma, Lu, Lu, Ying, *A Mean-field
    Analysis of Deep ResNet and Beyond*, ICML 2020, arXiv 2003.05508; these constants are ours.

    Example:

    >>> stage = MeanFieldStage(ResidualUnit(2), 3, horizon=0.1)
    >>> stage.build((None, 4))
    >>> known = mf_zoo.theory.Constants.of(stage)
    >>> steps = [block.step for block in stage.blocks()]
    >>> mf_zoo.theory.gradient_bounds(known, steps, [1.0, 1.0], [0.5, 0.5]).shape
    (3,)
    """
    steps, inputs = np.asarray(steps, "float64"), np.asarray(inputs, "float64")
    cotangents = np.asarray(cotangents, "float64")
    upper = costate_bounds(constants, steps)[1][1:, None]
    moved = state_bounds(constants, steps, inputs)[:-1]
    size, slope = (
        pair[:, :1] + np.where(inputs > 0, pair[:, 1:] * inputs, 0.0)
        for pair in (constants.gradient, constants.gradient_lipschitz)
    )
    place = np.multiply(slope, moved, out=np.zeros_like(moved), where=moved > 0) * upper
    backward = np.multiply(size, upper - 1, out=np.zeros_like(moved), where=upper > 1)
    return steps * np.sum(cotangents * (place + backward), axis=1)


def compare_bounds(
    stage: MeanFieldStage, x: Any, cotangent: Any, constants: Constants | None = None
) -> list[dict[str, float]]:
    """Every bound beside the measured value, depth by depth.

    Args:
        stage: A stage that has been built, without activation between its blocks.
        x: `(samples, features)`, its inputs `X(0)`.
        cotangent: `(samples, features)`, `p(T)`.
        constants: The `Constants` of its blocks; `None` for `Constants.of(stage)`.

    Returns:
        A row for each depth `l` from 0 to `n`, with the keys `depth`; `exponent`, the sum of
        `dt_k L_k` over the blocks after it; `time`; `moved`, `moved_upper` (the largest
        `|X^l - X(0)|` of the samples and its bound); `costate_least`, `costate_most`,
        `costate_lower`, `costate_upper` (the least and largest `|p^l| / |p(T)|` and their bounds);
        `ratio`, `ratio_lower`, `ratio_upper` (of the gradients of the particle at that depth,
        ResNet to ensemble; NaN for depth 0).

    Raises:
        ValueError: For a stage with an activation, an integrator other than Euler's, or
            residual functions whose constants are neither known nor given.

    Example:

    >>> stage = MeanFieldStage(ResidualUnit(2), 3, horizon=0.1)
    >>> stage.build((None, 4))
    >>> rows = mf_zoo.theory.compare_bounds(stage, np.eye(4), np.ones((4, 4)))
    >>> all(row["costate_lower"] <= row["costate_least"] for row in rows)
    True
    """
    if stage.activation is not keras.activations.linear or stage.integrator.order != 1:
        raise ValueError(
            "`stage` must have no activation between its blocks, and the integrator euler. "
            f"Received: activation={stage.activation!r}, integrator={stage.integrator!r}"
        )
    constants = Constants.of(stage) if constants is None else constants
    blocks = stage.blocks()
    steps = np.array([block.step for block in blocks])
    states = [ops.stop_gradient(state) for state in stage.states(x)]
    costates = [ops.cast(ops.convert_to_tensor(cotangent), states[0].dtype)]
    for position in reversed(range(len(blocks))):
        _, (before,) = autodiff.vjp(
            lambda z, position=position: z + stage.update(z, position),
            [states[position]],
            costates[0],
        )
        costates.insert(0, before)
    norms = [_norms(gradients) for gradients in _gradients(stage, states[0], costates[-1])]
    start, end = _numpy(states[0]), _norms(_numpy(costates[-1]))
    moved = [_norms(_numpy(state) - start) for state in states]
    relative = [_norms(_numpy(p))[end > 0] / end[end > 0] for p in costates]
    lower, upper = costate_bounds(constants, steps)
    moved_upper = state_bounds(constants, steps, _norms(start))
    apart = gradient_bounds(constants, steps, _norms(start), end)
    rows = []
    for depth in range(len(blocks) + 1):
        ratio = ratio_lower = ratio_upper = np.nan
        if depth and norms[1][depth - 1] > 0:
            ratio = norms[0][depth - 1] / norms[1][depth - 1]
            distance = apart[depth - 1] / norms[1][depth - 1]
            ratio_lower, ratio_upper = max(1 - distance, 0), 1 + distance
        rows.append(
            {
                "depth": depth,
                "exponent": float(np.sum((steps * constants.lipschitz)[depth:])),
                "time": float(np.sum(steps[:depth])),
                "moved": float(moved[depth].max()),
                "moved_upper": float(moved_upper[depth].max()),
                "costate_least": float(relative[depth].min()),
                "costate_most": float(relative[depth].max()),
                "costate_lower": float(lower[depth]),
                "costate_upper": float(upper[depth]),
                "ratio": float(ratio),
                "ratio_lower": float(ratio_lower),
                "ratio_upper": float(ratio_upper),
            }
        )
    return rows


def _gradients(stage: MeanFieldStage, inputs: Any, cotangent: Any) -> list[np.ndarray]:
    """The gradients of the stage and of its twin, `(n, weights)`, in depth order."""
    order = ops.convert_to_numpy(stage.depth_order())
    found = []
    for network in (stage, shallow_twin(stage)):
        _, gradients = autodiff.variables_vjp(
            lambda network=network: network(inputs), stage._stacked, cotangent
        )
        flat = [_numpy(gradient).reshape(len(order), -1)[order] for gradient in gradients]
        found.append(np.concatenate(flat, axis=1))
    return found


def _numpy(tensor: Any) -> np.ndarray:
    return ops.convert_to_numpy(ops.cast(tensor, "float32")).astype("float64")


def _norms(vectors: np.ndarray) -> np.ndarray:
    return np.linalg.norm(vectors, axis=-1)
