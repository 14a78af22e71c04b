"""The adjoint of a stage: gradients from a costate that is integrated backwards."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.layers import MeanFieldStage
from mf_zoo.theory import autodiff, segments


@dataclasses.dataclass(frozen=True, eq=False)
class Adjoint:
    """States and costates of a stage, and the gradients that follow from them.

    Args:
        states: Array `(n + 1, batch, ...)`, `X^0 ... X^n` in depth order. `X^0` is the input.
        costates: Array of the same shape, `p^0 ... p^n`: `p^l` is the derivative of the loss with
            respect to `X^l`. `p^n` is the cotangent that was given, `p^0` what a layer before the
            stage goes on with.
        weights: The gradient of each trainable weight of the blocks, in the order of
            `stage.trainable_variables` (without the times). The first axis counts particles in the
            order of storage, as that of the weights does.
        times: Array `(n,)`, the gradient of the times, in the order of storage.
        steps: Array `(n,)`, the derivative of the loss with respect to each step size, in depth
            order.
    """

    states: np.ndarray
    costates: np.ndarray
    weights: list[np.ndarray]
    times: np.ndarray
    steps: np.ndarray


class Blocks:
    """The blocks of a stage in depth order, as functions that change no variable.

    Args:
        stage: The stage, built.
        training: Whether blocks run in training mode.
    """

    def __init__(self, stage: MeanFieldStage, training: bool):
        self.stage = stage
        self.arguments = stage._block_arguments(training)
        trained = {id(variable) for variable in stage.trainable_variables}
        self.trained = [
            k
            for k, weight in enumerate(stage._stacked)
            if id(weight) in trained and keras.backend.is_float_dtype(weight.dtype)
        ]
        order, steps = (ops.stop_gradient(part) for part in stage._schedule())
        self.order = ops.convert_to_numpy(order)
        self.steps = ops.unstack(steps, stage.num_particles)
        stacked = [ops.stop_gradient(weight.value) for weight in stage._stacked]
        self.values = [[value[int(i)] for value in stacked] for i in self.order]

    def update(self, values: Sequence[Any], step: Any) -> Callable[[Any], Any]:
        """`dt f(x)` of a block with these weights, as a function of `x`."""
        scaled = list(values)
        for k in self.stage._folded:
            scaled[k] = scaled[k] * ops.cast(step, scaled[k].dtype)
        return self.stage._updater(scaled, step, self.arguments)[0]

    def step(self, position: int) -> Callable[..., Any]:
        """The state after a block, as a function of that before, the step and trained weights."""

        def state_after(x: Any, step: Any, *parts: Any) -> Any:
            values = list(self.values[position])
            for k, part in zip(self.trained, parts, strict=True):
                values[k] = part
            return self.stage.integrator(x, self.update(values, step), self.stage.activation)

        return state_after

    def arguments_of(self, position: int) -> list[Any]:
        """What `step` takes besides the state."""
        values = self.values[position]
        return [self.steps[position], *(values[k] for k in self.trained)]

    def states(self, x: Any) -> list[Any]:
        """`X^0 ... X^n`. What one block keeps for derivatives is dropped before the next runs."""
        states = [x]
        for position in range(self.stage.num_particles):
            y = self.step(position)(states[-1], *self.arguments_of(position))
            states.append(ops.stop_gradient(y))
        return states


def adjoint(
    stage: MeanFieldStage,
    x: Any,
    cotangent: Any | Callable[[Any], Any],
    training: bool = False,
    states: Any = None,
) -> Adjoint:
    """Integrates the adjoint equation backwards through a stage.

    The costate `p(t)`, the derivative of the loss with respect to the state at time `t`, obeys

        `dp/dt = -(d_X F)^T p`,    `F(X, t) = integral f(X, theta) rho(theta, t) dtheta`,

    from `p(T)` backwards. A stage is a discretisation, `X^l = S_l(X^(l-1))`, and so is

        `p^(l-1) = (d S_l / d X^(l-1))^T p^l`,    `l = n ... 1`.

    The gradients of a block's weights and of its step size are `(d S_l / d theta^l)^T p^l` and
    `(d S_l / d dt_l)^T p^l`; those of the times follow from the steps by the quadrature rule. They
    equal those of automatic differentiation up to rounding, for every integrator. All states are
    kept, and of one block at a time what lies within.

    Nothing changes in the stage: neither weights nor statistics nor the states of seeds. Losses
    that blocks add, such as regularizers, are not counted.

    Args:
        stage: The stage. One that is not built yet is built.
        x: Float array `(batch, ...)`, the input of the stage.
        cotangent: Array of the shape of the output, the derivative of the loss with respect to it,
            or a function that makes one from the output. The derivative of a loss that is a mean
            over the batch contains the `1 / batch`.
        training: Whether blocks run in training mode.
        states: Array `(n + 1, batch, ...)` of states at which the blocks are derived in place of
            their own, such as those of `reconstruct`. `None` for their own.

    Returns:
        The `Adjoint`.

    Raises:
        ValueError: If `cotangent` or `states` do not have the shape that they must have.

    Source: Lu, Ma, Lu, Lu, Ying, *A Mean-field Analysis of Deep ResNet and Beyond*, ICML 2020,
    arXiv 2003.05508 (the adjoint equation). That the adjoint of the discretisation, and not a
    discretisation of the adjoint, gives the gradient: Gholami, Keutzer, Biros, *ANODE*, IJCAI 2019,
    arXiv 1902.10298.

    Example:

    >>> from mf_zoo.theory import adjoint
    >>> stage = MeanFieldStage(keras.layers.Dense(2, kernel_initializer="zeros"), 3)
    >>> result = adjoint(stage, np.ones((1, 2)), np.array([[1.0, 2.0]]))
    >>> result.costates[:, 0].tolist()  # of blocks that return 0 it is constant
    [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]
    """
    blocks, found, costates, gradients = integrate(stage, x, cotangent, training, states)
    steps, *weights = (ops.stack(parts) for parts in zip(*gradients, strict=True))
    position = np.argsort(blocks.order)
    _, (times,) = autodiff.variables_vjp(stage.step_sizes, [stage.times], steps)
    return Adjoint(
        states=np.stack([as_array(state) for state in found]),
        costates=np.stack([as_array(costate) for costate in costates]),
        weights=[as_array(part)[position] for part in weights],
        times=as_array(times),
        steps=as_array(steps),
    )


def integrate(
    stage: MeanFieldStage, x: Any, cotangent: Any, training: bool, states: Any = None
) -> tuple[Blocks, list[Any], list[Any], list[list[Any]]]:
    """Blocks, states, costates and for each block, in depth order, its gradients.

    Of these the first is that of the step size; the others are those of `Blocks.trained`.
    """
    n, x = stage.num_particles, stage._prepared(x)
    blocks = Blocks(stage, training)
    if states is None:
        states = blocks.states(x)
    else:
        states = [ops.cast(ops.convert_to_tensor(state), x.dtype) for state in states]
        if [tuple(state.shape) for state in states] != [tuple(x.shape)] * (n + 1):
            raise ValueError(
                f"`states` must be {n + 1} arrays of the shape of the input, {tuple(x.shape)}. "
                f"Received: shapes {[tuple(state.shape) for state in states]}"
            )
    given = cotangent(states[-1]) if callable(cotangent) else cotangent
    costate = ops.cast(ops.convert_to_tensor(given), x.dtype)
    if tuple(costate.shape) != tuple(x.shape):
        raise ValueError(
            f"`cotangent` must have the shape of the stage's output, {tuple(x.shape)}. "
            f"Received: {tuple(costate.shape)}"
        )
    costates, gradients = [costate], []
    for position in reversed(range(n)):
        _, (costate, *found) = autodiff.vjp(
            blocks.step(position), [states[position], *blocks.arguments_of(position)], costates[-1]
        )
        costates.append(costate)
        gradients.append(found)
    return blocks, states, costates[::-1], gradients[::-1]


def as_array(value: Any) -> np.ndarray:
    """A tensor as a NumPy array; NumPy knows no bfloat16."""
    dtype = keras.backend.standardize_dtype(value.dtype)
    return np.array(
        ops.convert_to_numpy(value if dtype == "float64" else ops.cast(value, "float32"))
    )


def adjoints(
    model: keras.Model,
    x: Any,
    y: Any,
    loss: Any = "sparse_categorical_crossentropy",
    training: bool = False,
) -> list[Adjoint]:
    """The adjoint of each stage of a model, for the loss of a batch.

    Args:
        model: A model that `cut` takes apart, such as those of the zoo.
        x: A batch of inputs, for the zoo images 0..255.
        y: The targets, for the default loss integer labels `(batch,)`.
        loss: As in `model.compile`; its mean over the batch counts. The default takes the model's
            outputs for probabilities. For a model that ends in logits pass
            `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`.
        training: Whether layers run in training mode.

    Returns:
        An `Adjoint` for each stage, from input to output.

    Raises:
        ValueError: For a model that cannot be cut.

    Example:

    >>> from mf_zoo.theory import adjoints
    >>> images, labels = mf_zoo.data.sample("cifar10")
    >>> found = adjoints(mf_zoo.applications.MFResNet20(), images[:2], labels[:2])
    >>> [len(result.costates) for result in found]
    [4, 3, 3]
    """
    parts = segments.cut(model)
    measure = keras.losses.get(loss)
    y = ops.convert_to_tensor(y)

    def piece(k: int) -> Callable[[Any], Any]:
        variables = parts.pieces[k].variables

        def run(z: Any) -> Any:
            with keras.StatelessScope([(variable, variable.value) for variable in variables]):
                return parts.pieces[k](z, training=training)

        return run

    states: list[list[Any]] = []
    z = ops.convert_to_tensor(x)
    for k, stage in enumerate(parts.stages):
        z = stage._prepared(ops.stop_gradient(piece(k)(z)))
        states.append(Blocks(stage, training).states(z))
        z = states[-1][-1]

    def total(z: Any) -> Any:
        return ops.mean(measure(y, piece(len(states))(z)))

    _, (costate,) = autodiff.vjp(total, [z])
    found: list[Adjoint] = []
    for k in reversed(range(len(states))):
        found.insert(0, adjoint(parts.stages[k], states[k][0], costate, training, states[k]))
        if k:  # on to the output of the stage before, through what lies between the two
            _, (costate,) = autodiff.vjp(piece(k), [states[k - 1][-1]], found[0].costates[0])
    return found
