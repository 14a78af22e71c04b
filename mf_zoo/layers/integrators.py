"""Integrators: how a stage steps from the state before a particle to the state after it."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from mf_zoo.layers.named import Named


class Integrator:
    """Base of the rules that make one step of a stage.

    A quadrature rule says how long the step of a particle is, an integrator how it is made. Within
    a step `dX/dt = f(X, theta)` has one `theta`, that of the particle: the measure is constant on
    its cell. Subclass it and give the class a name with `register_integrator`: then
    `MeanFieldStage(integrator="ralston")`, recipes and the `mf-zoo` command know it. An instance
    can be passed as well.

    Attributes:
        order: Order of the error at the end of a stage in the step size, where `f` and the
            activation are smooth: halving all steps divides the error by `2^order`.

    Example:

    ```python
    @mf_zoo.layers.register_integrator("ralston")
    class RalstonIntegrator(mf_zoo.layers.Integrator):
        order = 2

        def __call__(self, x, update, activation):
            first = update(x)
            second = update(activation(x + 2 / 3 * first))
            return activation(x + first / 4 + 3 / 4 * second)
    ```
    """

    order: int | None = None

    def __call__(self, x: Any, update: Callable[[Any], Any], activation: Callable) -> Any:
        """One step of a stage.

        Args:
            x: Float tensor, the state before the step.
            update: Returns `dt f(x, theta)` of a state, in the state's shape and dtype.
            activation: The stage's activation. States of a post-activation network live where it
                puts them, so every state that `update` is given, and the one that is returned, must
                have passed through it.

        Returns:
            The state after the step.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `__call__`.")

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Integrator":
        return cls(**config)


_INTEGRATORS = Named(
    Integrator, "integrator", "integrator", "register_integrator", "(x, update, activation)"
)


def register_integrator(name: str) -> Callable[[type[Integrator]], type[Integrator]]:
    """A decorator that gives an integrator its name.

    The name is what `MeanFieldStage(integrator=...)` takes and what configurations, recipes and
    weight records say. All else is as in `register_rule`.

    Args:
        name: The name, which no other integrator may have. (A class takes the place of one of the
            same module and name, as when a cell of a notebook is run again.)

    Returns:
        The decorator, which returns the class.

    Raises:
        ValueError: If the name is taken, or what is decorated is no subclass of `Integrator`, or
            one whose constructor needs arguments.

    Example:

    ```python
    @mf_zoo.layers.register_integrator("half_euler")
    class HalfEulerIntegrator(mf_zoo.layers.Integrator):
        def __call__(self, x, update, activation):
            return activation(x + update(x) / 2)

    stage = mf_zoo.layers.MeanFieldStage(keras.layers.Dense(4), 2, integrator="half_euler")
    ```
    """
    return _INTEGRATORS.register(name)


def names() -> list[str]:
    """The names of all registered integrators, in the order of their registration.

    Returns:
        List of names that `MeanFieldStage(integrator=...)` takes.

    Example:

    >>> mf_zoo.layers.integrators.names()[:3]
    ['euler', 'midpoint', 'heun']
    """
    return list(_INTEGRATORS.classes)


@register_integrator("euler")
@keras.saving.register_keras_serializable(package="mf_zoo")
class EulerIntegrator(Integrator):
    """`X + dt f(X)`: the explicit Euler method, which makes a stage an ordinary residual network.

    Order 1. One evaluation of `f` a step.

    Source: Lu, Ma, Lu, Lu, Ying, *A Mean-field Analysis of Deep ResNet and Beyond*, ICML 2020,
    arXiv 2003.05508.

    Example:

    >>> EulerIntegrator()(1.0, lambda x: -0.5 * x, lambda x: x)
    0.5
    """

    order = 1

    def __call__(self, x: Any, update: Callable[[Any], Any], activation: Callable) -> Any:
        return activation(x + update(x))


@register_integrator("midpoint")
@keras.saving.register_keras_serializable(package="mf_zoo")
class MidpointIntegrator(Integrator):
    """`X + dt f(X + dt/2 f(X))`: the explicit midpoint method.

    Order 2 for a smooth `f` and a measure that is constant on the cells. Two evaluations of `f` a
    step. (The quadrature rule `"midpoint"` is another thing: it says how long the step is.)

    Source: Runge, *Über die numerische Auflösung von Differentialgleichungen*, Mathematische
    Annalen 46, 1895.

    Example:

    >>> MidpointIntegrator()(1.0, lambda x: -0.5 * x, lambda x: x)
    0.625
    """

    order = 2

    def __call__(self, x: Any, update: Callable[[Any], Any], activation: Callable) -> Any:
        middle = activation(x + 0.5 * update(x))
        return activation(x + update(middle))


@register_integrator("heun")
@keras.saving.register_keras_serializable(package="mf_zoo")
class HeunIntegrator(Integrator):
    """`X + dt/2 (f(X) + f(X + dt f(X)))`: Heun's method, the explicit trapezoidal rule.

    Order 2 for a smooth `f` and a measure that is constant on the cells. Two evaluations of `f` a
    step; the second is at the state to which Euler's method would have come.

    Source: Heun, *Neue Methoden zur approximativen Integration der Differentialgleichungen einer
    unabhängigen Veränderlichen*, Zeitschrift für Mathematik und Physik 45, 1900.

    Example:

    >>> HeunIntegrator()(1.0, lambda x: -0.5 * x, lambda x: x)
    0.625
    """

    order = 2

    def __call__(self, x: Any, update: Callable[[Any], Any], activation: Callable) -> Any:
        first = update(x)
        second = update(activation(x + first))
        return activation(x + 0.5 * (first + second))


def get(identifier: str | dict | Integrator | Callable) -> Any:
    """Finds an integrator.

    Args:
        identifier: A name, one of `names()`; an integrator or other callable of `(x, update,
            activation)`; or a serialised one.

    Returns:
        The integrator.

    Raises:
        ValueError: For anything else.

    Example:

    >>> mf_zoo.layers.integrators.get("heun").order
    2
    """
    return _INTEGRATORS.get(identifier)


def serialize(integrator: Any) -> str | dict:
    """The name by which `get` makes an equal integrator, where there is one, else Keras's form.

    Args:
        integrator: What `get` returned.

    Returns:
        A name, or what `keras.saving.serialize_keras_object` returns.

    Example:

    >>> mf_zoo.layers.integrators.serialize(MidpointIntegrator())
    'midpoint'
    """
    return _INTEGRATORS.serialize(integrator)


def evaluations(integrator: Any) -> int:
    """How many times an integrator evaluates the residual function in a step.

    Args:
        integrator: What `get` returned.

    Returns:
        The number.

    Example:

    >>> mf_zoo.layers.integrators.evaluations(HeunIntegrator())
    2
    """
    states = []

    def update(x: Any) -> Any:
        states.append(x)
        return x

    integrator(ops.zeros(()), update, lambda x: x)
    return len(states)
