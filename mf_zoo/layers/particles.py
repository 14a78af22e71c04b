"""What a variable is to the mean field, and the walls of the time interval."""

import dataclasses
from typing import Any, Literal

import keras
import numpy as np
from keras import ops


@dataclasses.dataclass(frozen=True)
class ParticleInfo:
    """The part that a variable plays in a stage; found as `variable.mean_field`.

    Args:
        kind: `"time"` for a stage's vector of times; `"block"` for a stacked weight of its
            residual blocks, whose first axis counts particles.
        num_particles: Number `n` of particles in the stage.
        horizon: Length `T` of the stage's time interval `[0, T]`.
    """

    kind: Literal["time", "block"]
    num_particles: int
    horizon: float


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """A particle of a stage as plain numbers; see `MeanFieldStage.blocks`.

    Args:
        particle: Its index in storage, which it keeps for life.
        time: Its time.
        step: Its step size `dt_l`.
        weights: Its arrays, in the order of `stage.template().variables`.
    """

    particle: int
    time: float
    step: float
    weights: list[np.ndarray]


def reflect(times: Any, horizon: float) -> tuple[Any, Any]:
    """Folds times into `[0, horizon]` as a billiard ball between two walls.

    Args:
        times: Float tensor of any shape.
        horizon: Length `T > 0` of the interval.

    Returns:
        `(folded, sign)`, both shaped like `times`. `folded` is in `[0, horizon]`, and equal to
        `times`, to the bit, where that was inside already; `sign` is +1 where the number of
        reflections was even and -1 where it was odd: the factor that turns a velocity.

    Example:

    >>> folded, sign = reflect(keras.ops.array([-0.5, 1.0, 3.25]), 3.0)
    >>> keras.ops.convert_to_numpy(folded).tolist(), keras.ops.convert_to_numpy(sign).tolist()
    ([0.5, 1.0, 2.75], [-1.0, 1.0, -1.0])
    """
    times = ops.convert_to_tensor(times)
    horizon = ops.cast(horizon, times.dtype)
    # Adding a period to a tiny negative time rounds to a whole period: still folded to 0.
    phase = ops.mod(times, 2 * horizon)
    inside = ops.less_equal(phase, horizon)
    folded = ops.maximum(ops.where(inside, phase, 2 * horizon - phase), 0)
    sign = ops.where(inside, ops.ones_like(times), -ops.ones_like(times))
    return folded, sign


@keras.saving.register_keras_serializable(package="mf_zoo")
class Reflect(keras.constraints.Constraint):
    """Constraint that keeps times in `[0, horizon]` by reflection, whatever the optimizer.

    Args:
        horizon: Length `T` of the interval.

    Example:

    >>> keras.ops.convert_to_numpy(Reflect(2.0)(keras.ops.array([-0.25, 2.5]))).tolist()
    [0.25, 1.5]
    """

    def __init__(self, horizon: float):
        if not horizon > 0:
            raise ValueError(f"`horizon` must be a positive number. Received: horizon={horizon}")
        self.horizon = float(horizon)

    def __call__(self, value: Any) -> Any:
        return reflect(value, self.horizon)[0]

    def get_config(self) -> dict[str, Any]:
        return {"horizon": self.horizon}


class PerParticle:
    """Applies a weight's regularizer or constraint to each particle of a stacked weight.

    A rule written for one block's weight (its axes, its norms) may mean something else on the
    stack of `n` of them.

    Args:
        rule: `keras.regularizers.Regularizer` or `keras.constraints.Constraint` of one block.
        reduce: `"sum"` to add up the results (regularizers) or `"stack"` (constraints).
    """

    def __init__(self, rule: Any, reduce: Literal["sum", "stack"]):
        self.rule = rule
        self.reduce = reduce

    def __call__(self, value: Any) -> Any:
        results = [self.rule(part) for part in ops.unstack(ops.convert_to_tensor(value))]
        return sum(results) if self.reduce == "sum" else ops.stack(results)
