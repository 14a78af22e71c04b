"""Quadrature rules: the step size that each particle gets from the sorted times of its stage."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.layers.named import Named


class QuadratureRule:
    """Base of the rules that turn sorted times into step sizes.

    A stage integrates `dX/dt = f(X, theta(t))` over `[0, T]` by
    `X^l = X^(l-1) + dt_l f(X^(l-1), theta^l)`; a rule says what `dt_l` is. Subclass it and give the
    class a name with `register_rule`: then `MeanFieldStage(quadrature="forward")`, recipes and the
    `mf-zoo` command know it. An instance can be passed as well.

    Example:

    ```python
    @mf_zoo.layers.register_rule("forward")
    class ForwardRule(mf_zoo.layers.QuadratureRule):
        def __call__(self, times, horizon):
            ends = keras.ops.concatenate([times[1:], keras.ops.ones_like(times[:1]) * horizon])
            return ends - times
    ```
    """

    def __call__(self, times: Any, horizon: float) -> Any:
        """Step sizes of a stage.

        Args:
            times: Float tensor `(n,)`, ascending, in `[0, horizon]`.
            horizon: Length `T` of the time interval.

        Returns:
            Float tensor `(n,)` of step sizes `dt_l >= 0`, differentiable in `times`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `__call__`.")

    def grid(self, num_particles: int, horizon: float) -> np.ndarray:
        """Times at which the rule's steps are all equal to `horizon / num_particles`.

        Args:
            num_particles: Number `n` of particles.
            horizon: Length `T` of the time interval.

        Returns:
            float64 array `(n,)`, ascending: `(i + 1) T / n` unless a rule says otherwise.
        """
        return (np.arange(num_particles) + 1.0) * (horizon / num_particles)

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuadratureRule":
        return cls(**config)


_RULES = Named(QuadratureRule, "quadrature", "quadrature rule", "register_rule", "(times, horizon)")


def register_rule(name: str) -> Callable[[type[QuadratureRule]], type[QuadratureRule]]:
    """A decorator that gives a quadrature rule its name.

    The name is what `MeanFieldStage(quadrature=...)` takes and what configurations, recipes and
    weight records say. The module that registers it must have been imported where it is used. The
    class is registered with Keras as well, unless it is already, for instances that are made with
    arguments.

    Args:
        name: The name, which no other rule may have. (A class takes the place of one of the same
            module and name, as when a cell of a notebook is run again.)

    Returns:
        The decorator, which returns the class.

    Raises:
        ValueError: If the name is taken, or what is decorated is no subclass of `QuadratureRule`,
            or one whose constructor needs arguments.

    Example:

    ```python
    @mf_zoo.layers.register_rule("half")
    class HalfRule(mf_zoo.layers.QuadratureRule):
        def __call__(self, times, horizon):
            return times * 0 + horizon / (2 * times.shape[0])

    stage = mf_zoo.layers.MeanFieldStage(keras.layers.Dense(4), 2, quadrature="half")
    ```
    """
    return _RULES.register(name)


def rules() -> list[str]:
    """The names of all registered rules, in the order of their registration.

    Returns:
        List of names that `MeanFieldStage(quadrature=...)` takes.

    Example:

    >>> rules()[:4]
    ['backward', 'midpoint', 'uniform', 'uniform_straight_through']
    """
    return list(_RULES.classes)


@register_rule("backward")
@keras.saving.register_keras_serializable(package="mf_zoo")
class BackwardRule(QuadratureRule):
    """`dt_l = t^l - t^(l-1)` with `t^0 = 0`: backward differences, the rule of the paper.

    As a quadrature of `[0, t^n]` it is the right-endpoint rectangle rule: first order in the
    largest gap. The steps add up to the last time `t^n`, not to `T`.

    At a crossing it jumps: just before, the later of the two particles has a step of almost 0 and
    the earlier the whole gap to its predecessor; just after, they have changed places, and so has
    the gap. `d dt_l / d t^l = 1`, `d dt_l / d t^(l-1) = -1`.

    Source: Lu, Ma, Lu, Lu, Ying, *A Mean-field Analysis of Deep ResNet and Beyond*, ICML 2020,
    arXiv 2003.05508.

    Example:

    >>> times = keras.ops.array([0.5, 2.0, 3.0])
    >>> keras.ops.convert_to_numpy(BackwardRule()(times, 3.0)).tolist()
    [0.5, 1.5, 1.0]
    """

    def __call__(self, times: Any, horizon: float) -> Any:
        return times - ops.concatenate([ops.zeros_like(times[:1]), times[:-1]])


@register_rule("midpoint")
@keras.saving.register_keras_serializable(package="mf_zoo")
class MidpointRule(QuadratureRule):
    """`dt_l` is the width of the particle's Voronoi cell in `[0, T]`.

    Cells end half-way between neighbours and at the walls: `dt_l = (t^(l+1) - t^(l-1)) / 2`
    inside, `dt_1 = (t^1 + t^2) / 2`, `dt_n = T - (t^(n-1) + t^n) / 2`; one particle gets `T`. The
    steps always add up to `T`. On the grid `(i + 1/2) T / n` this is the midpoint rule, second
    order in `T / n`; at irregular times, first order in the widest cell.

    At a crossing no step falls to 0: the pair shares a cell whose width is continuous, the earlier
    particle having its left half and the later its right half. A particle's own step therefore
    jumps by the difference of the two halves, and not at all where the neighbours are equally far.

    Example:

    >>> times = keras.ops.array([0.5, 2.0, 3.0])
    >>> keras.ops.convert_to_numpy(MidpointRule()(times, 4.0)).tolist()
    [1.25, 1.25, 1.5]
    """

    def __call__(self, times: Any, horizon: float) -> Any:
        walls = ops.zeros_like(times[:1])
        inner = (times[:-1] + times[1:]) / 2
        edges = ops.concatenate([walls, inner, walls + horizon])
        return edges[1:] - edges[:-1]

    def grid(self, num_particles: int, horizon: float) -> np.ndarray:
        """`(i + 1/2) T / n`, where every cell is `T / n` wide."""
        return (np.arange(num_particles) + 0.5) * (horizon / num_particles)


@register_rule("uniform")
@keras.saving.register_keras_serializable(package="mf_zoo")
class UniformRule(QuadratureRule):
    """`dt_l = T / n`: times decide the order of the blocks and nothing else.

    For times that are a sample of the uniform law it is Monte Carlo quadrature, of order
    `n^(-1/2)`; on the grid it equals the backward rule. Steps do not change at a crossing and their
    derivative with respect to the times is 0, so gradient descent leaves the times where they are:
    only noise moves them.

    Example:

    >>> times = keras.ops.array([0.5, 2.0, 3.0])
    >>> keras.ops.convert_to_numpy(UniformRule()(times, 3.0)).tolist()
    [1.0, 1.0, 1.0]
    """

    def __call__(self, times: Any, horizon: float) -> Any:
        # A product with 0 keeps the (zero) gradient connected for every backend's optimizer.
        return times * 0 + horizon / times.shape[0]


@register_rule("uniform_straight_through")
@keras.saving.register_keras_serializable(package="mf_zoo")
class UniformStraightThroughRule(QuadratureRule):
    """`dt_l = T / n`, with the gradient of the backward rule in the place of its own, which is 0.

    A straight-through estimator: times move as if they made the steps, and decide the order of the
    blocks and nothing else. For telling what reordering does from what learned steps do; it is the
    gradient of no function, so it promises no descent.

    Source: Bengio, Leonard, Courville, *Estimating or Propagating Gradients Through Stochastic
    Neurons for Conditional Computation*, 2013, arXiv 1308.3432 (the estimator; this use is ours).

    Example:

    >>> times = keras.ops.array([0.5, 2.0, 3.0])
    >>> keras.ops.convert_to_numpy(UniformStraightThroughRule()(times, 3.0)).tolist()
    [1.0, 1.0, 1.0]
    """

    def __call__(self, times: Any, horizon: float) -> Any:
        steps = BackwardRule()(times, horizon)
        # The difference is exactly 0.
        return steps - ops.stop_gradient(steps) + horizon / times.shape[0]


def get(identifier: str | dict | QuadratureRule | Callable) -> Any:
    """Finds a quadrature rule.

    Args:
        identifier: A name, one of `rules()`; a rule or other callable of `(times, horizon)`; or a
            serialised one.

    Returns:
        The rule.

    Raises:
        ValueError: For anything else.

    Example:

    >>> rule = mf_zoo.layers.quadrature.get("midpoint")
    >>> keras.ops.convert_to_numpy(rule(keras.ops.array([1.0, 2.0]), 4.0)).tolist()
    [1.5, 2.5]
    """
    return _RULES.get(identifier)


def grid(rule: Any, num_particles: int, horizon: float) -> np.ndarray:
    """Grid times of a rule; a plain callable without `grid` gets `(i + 1) T / n`.

    Args:
        rule: What `get` returned.
        num_particles: Number `n` of particles.
        horizon: Length `T` of the time interval.

    Returns:
        float64 array `(n,)`.
    """
    return getattr(rule, "grid", QuadratureRule().grid)(num_particles, horizon)


def serialize(rule: Any) -> str | dict:
    """The name by which `get` makes an equal rule, where there is one, else Keras's form.

    Args:
        rule: What `get` returned.

    Returns:
        A name, or what `keras.saving.serialize_keras_object` returns.

    Example:

    >>> mf_zoo.layers.quadrature.serialize(MidpointRule())
    'midpoint'
    """
    return _RULES.serialize(rule)
