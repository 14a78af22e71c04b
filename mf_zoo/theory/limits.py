"""How far a network of finite depth and width is from its limit."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.layers import MeanFieldStage, measures
from mf_zoo.theory import autodiff, segments


class _Perceptrons(keras.layers.Layer):
    """Blocks of several independent networks at once: two layers each, of their own widths.

    `f(x) = alpha / M sum_j v_j tanh(u_j . x)` for each network, where `M` is its width. All have as
    many neurons as the widest; those that a network has not count with the factor 0.
    """

    def __init__(self, widths: Sequence[int], alpha: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.widths = list(widths)
        self.alpha = alpha
        neurons = np.arange(max(widths))
        scales = [np.where(neurons < width, alpha / width, 0.0) for width in widths]
        self.scale = np.stack(scales)[:, None].astype("float32")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        networks, dimension, width = len(self.widths), input_shape[-1], max(self.widths)
        self.inner = self.add_weight(shape=(networks, dimension, width), initializer="zeros")
        self.outer = self.add_weight(shape=(networks, width, dimension), initializer="zeros")

    def call(self, inputs: Any) -> Any:
        scale = ops.convert_to_tensor(self.scale)
        hidden = ops.tanh(ops.matmul(inputs, self.inner)) * scale
        return ops.matmul(hidden, self.outer)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "widths": self.widths, "alpha": self.alpha}


@dataclasses.dataclass(frozen=True)
class DepthError:
    """How far random networks of one depth and width are from their limit.

    All three errors are root mean squares over inputs and coordinates, relative to that of the
    reference. Up to the factor `(seeds - 1) / seeds` of the last square,
    `error^2 = bias^2 + spread^2`.

    Args:
        depth: Number `L` of particles.
        width: Number `M` of hidden neurons in each.
        alpha: Scale of the residual function.
        steps: Number of gradient steps before the measurement.
        seeds: Number of independent networks.
        error: Root mean square over the networks of the distance to the reference.
        bias: Distance of the networks' mean output to the reference. It cannot be seen below
            `spread / sqrt(seeds)`.
        spread: Standard deviation of the output from network to network.
        loss: Mean of the networks' losses, `|X_L - y|^2 / 2` averaged over the inputs.
        reference: Depth and width of the reference.
    """

    depth: int
    width: int
    alpha: float
    steps: int
    seeds: int
    error: float
    bias: float
    spread: float
    loss: float
    reference: tuple[int, int]


def depth_error(
    depths: Sequence[int] = (4, 8, 16, 32, 64, 128),
    widths: Sequence[int] = (1, 4, 16),
    *,
    alpha: float = 1.0,
    drift: float = 0.0,
    steps: Sequence[int] = (0,),
    learning_rate: float = 1.0,
    seeds: int = 8,
    reference: tuple[int, int] | None = None,
    dimension: int = 4,
    inputs: int = 16,
    seed: int = 0,
) -> list[DepthError]:
    """The error of networks of finite depth and width to a network that is far deeper and wider.

    The networks are stages of `L` particles, each a perceptron with `M` hidden neurons, at horizon
    1, so that the step is `1 / L`:

        `X^l = X^(l-1) + alpha / (L M) sum_j v_lj tanh(u_lj . X^(l-1))`,

    with entries of `u` from `N(0, 1 / D)` and `v = drift D C u + w`, entries of `w` from
    `N(0, 1)`, independent for every neuron and network; `C` is one orthogonal matrix. With
    `drift=0` weights are those of a standard initialisation: the mean of `f` is 0 and the limit at
    initialisation the identity. With another drift the limit is a flow already there.

    They are trained by full-batch gradient descent on `|X_L - y|^2 / 2`, averaged over the inputs,
    of a target that is a rotation of the inputs, with the learning rate times `L M / alpha^2`: the
    mean-field scaling, in which the output moves alike at every depth and width. Depths share
    inputs, targets and the law of the weights, and nothing else.

    Args:
        depths: Numbers `L` of particles.
        widths: Numbers `M` of hidden neurons of a particle.
        alpha: Scale of the residual function. With 1 features are learned; the greater it is, the
            nearer is training to that of a model linear in its weights.
        drift: Scale of the mean of the residual function at initialisation.
        steps: Numbers of gradient steps after which to measure.
        learning_rate: The learning rate, before it is scaled.
        seeds: Number of networks of each depth and width, at least 2.
        reference: Depth and width of the reference, whose output is the mean of as many networks;
            `None` for 4 times the greatest of `depths` and of `widths`.
        dimension: Dimension `D` of the states.
        inputs: Number of inputs, drawn from the sphere of radius `sqrt(D)`.
        seed: Seed of all draws. They are NumPy's, the same on every backend.

    Returns:
        A `DepthError` for each number of steps, depth and width, in this order, as given.

    Raises:
        ValueError: For numbers out of range, or a reference that is not greater in depth than all.

    Source: Chizat, *The Hidden Width of Deep ResNets: Tight Error Bounds and Phase Diagrams*, 2025,
    arXiv 2509.10167, abstract: with a residual scale `alpha / (L M)` the output differs from the
    limit by `O(1 / L + alpha / sqrt(L M))` after a fixed number of gradient steps. (The second
    version states it for `alpha` of order 1.) The inputs, the target and the drift are ours.

    Example:

    >>> found = mf_zoo.theory.depth_error([4, 16], [4], seeds=4)
    >>> [(record.depth, record.width) for record in found]
    [(4, 4), (16, 4)]
    >>> found[1].error < found[0].error
    True
    """
    for name, values, least in (
        ("depths", depths, 1),
        ("widths", widths, 1),
        ("steps", steps, 0),
        ("seeds", [seeds], 2),
        ("dimension", [dimension], 2),
        ("inputs", [inputs], 1),
    ):
        whole = all(isinstance(value, (int, np.integer)) for value in values)
        if not len(values) or not whole or min(values) < least:
            raise ValueError(
                f"`{name}` must be integers of at least {least}. Received: {name}={values!r}"
            )
    if not (np.isfinite(alpha) and alpha > 0):
        raise ValueError(f"`alpha` must be a positive number. Received: alpha={alpha!r}")
    reference = reference or (4 * max(depths), 4 * max(widths))
    if reference[0] <= max(depths) or reference[1] < 1:
        raise ValueError(
            "`reference` must be a depth above all of `depths` and a width. "
            f"Received: reference={reference!r} with depths up to {max(depths)}"
        )
    x, y, mean = _problem(dimension, inputs, seed)

    def run(depth: int, networks: list[int]) -> list[np.ndarray]:
        rng = np.random.default_rng([seed, depth])
        weights = _draw(rng, depth, networks, drift * mean)
        return _outputs(x, y, weights, networks, alpha, steps, learning_rate)

    limits = [output.mean(axis=0) for output in run(reference[0], [reference[1]] * seeds)]
    networks = [width for width in widths for _ in range(seeds)]
    outputs = [run(depth, networks) for depth in depths]
    shape = (len(widths), seeds, inputs, dimension)
    found = []
    for k, (count, limit) in enumerate(zip(steps, limits, strict=True)):
        unit = np.sqrt(np.mean(limit**2))
        for depth, all_steps in zip(depths, outputs, strict=True):
            for width, output in zip(widths, all_steps[k].reshape(shape), strict=True):
                center = output.mean(axis=0)
                square = np.sum((output - center) ** 2) / (seeds - 1) / limit.size
                found.append(
                    DepthError(
                        depth=int(depth),
                        width=int(width),
                        alpha=float(alpha),
                        steps=int(count),
                        seeds=int(seeds),
                        error=float(np.sqrt(np.mean((output - limit) ** 2)) / unit),
                        bias=float(np.sqrt(np.mean((center - limit) ** 2)) / unit),
                        spread=float(np.sqrt(square) / unit),
                        loss=float(np.sum((output - y) ** 2) / 2 / inputs / seeds),
                        reference=(int(reference[0]), int(reference[1])),
                    )
                )
    return found


def _problem(dimension: int, inputs: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs and targets `(inputs, dimension)`, and the orthogonal matrix of the drift."""
    rng = np.random.default_rng([seed, 0])
    x = rng.normal(size=(inputs, dimension))
    x *= np.sqrt(dimension) / np.linalg.norm(x, axis=1, keepdims=True)
    matrices = [np.linalg.qr(rng.normal(size=(dimension, dimension)))[0] for _ in range(2)]
    return x, x @ matrices[0], matrices[1]


def _draw(
    rng: np.random.Generator, depth: int, networks: Sequence[int], mean: np.ndarray
) -> list[np.ndarray]:
    """Weights `(depth, networks, ...)` of the two layers of every block."""
    dimension, width = len(mean), max(networks)
    inner = rng.normal(size=(depth, len(networks), dimension, width)) / np.sqrt(dimension)
    outer = rng.normal(size=(depth, len(networks), width, dimension))
    outer += dimension * np.swapaxes(inner, 2, 3) @ mean.T
    return [inner.astype("float32"), outer.astype("float32")]


def _outputs(
    x: np.ndarray,
    y: np.ndarray,
    weights: list[np.ndarray],
    networks: Sequence[int],
    alpha: float,
    steps: Sequence[int],
    learning_rate: float,
) -> list[np.ndarray]:
    """Outputs `(networks, inputs, dimension)` after each of the numbers of gradient steps."""
    depth = len(weights[0])
    stage = MeanFieldStage(
        _Perceptrons(networks, alpha, dtype="float32"),
        depth,
        quadrature="uniform",
        horizon=1.0,
        train_times=False,
        dtype="float32",
    )
    given = np.repeat(x[None].astype("float32"), len(networks), axis=0)
    stage.build(given.shape)
    stage.set_blocks(list(zip(*weights, strict=True)))
    given, target = ops.convert_to_tensor(given), ops.convert_to_tensor(y.astype("float32"))
    trained = [weight for weight in stage.weights if weight is not stage.times]
    rates = learning_rate * depth * np.array(networks, "float32") / alpha**2
    rates = ops.convert_to_tensor(rates[None, :, None, None])
    found = {}
    for count in range(max(steps) + 1):
        if count in steps:
            found[count] = ops.convert_to_numpy(stage(given)).astype("float64")
        if count == max(steps):
            break
        _, gradients = autodiff.variables_vjp(
            lambda: stage(given), trained, lambda output: (output - target) / len(x)
        )
        for weight, gradient in zip(trained, gradients, strict=True):
            weight.assign(weight.value - rates * gradient)
    return [found[count] for count in steps]


@dataclasses.dataclass(frozen=True)
class DepthFit:
    """The rate that was fitted to records of `depth_error`.

    Args:
        a: Factor of `1 / L`, the error of the step size.
        b: Factor of `alpha / sqrt(L M)`, the error of the random draw.
        share: For each record the part of the first term in the two, from 0 to 1, as it counts in
            the form that was fitted.
        fitted: For each record the error that the rate gives.
        misfit: Root mean square of `fitted / error - 1`.
    """

    a: float
    b: float
    share: np.ndarray
    fitted: np.ndarray
    misfit: float


def fit_depth_error(records: Sequence[DepthError], form: str = "squares") -> DepthFit:
    """Fits the rate `a / L + b alpha / sqrt(L M)` to errors, by least squares of relative errors.

    Both factors are kept from 0 on. The reference has a depth `R` of its own, so what stands for
    `1 / L` is `1 / L - 1 / R`.

    Args:
        records: Records of `depth_error` after one number of steps.
        form: `"squares"` fits `error^2 = (a / L)^2 + (b alpha)^2 / (L M)`, for so the square of a
            root mean square is made of those of bias and spread; `"sum"` fits the sum of the two
            terms, as the bound is written. They differ by at most the factor `sqrt(2)`.

    Returns:
        The `DepthFit`.

    Raises:
        ValueError: For fewer than two records, or another form.

    Example:

    >>> found = mf_zoo.theory.depth_error([4, 16], [1, 64], seeds=4, reference=(64, 64))
    >>> fit = mf_zoo.theory.fit_depth_error(found)
    >>> fit.a < fit.b  # at initialisation there is no error of the step size
    True
    """
    from scipy.optimize import nnls

    if len(records) < 2:
        raise ValueError(f"`records` must be at least two. Received: {len(records)} records")
    if form not in ("squares", "sum"):
        raise ValueError(f'`form` must be "squares" or "sum". Received: form={form!r}')
    power = 2 if form == "squares" else 1
    depth, width, alpha, error = np.array(
        [(r.depth, r.width, r.alpha, r.error) for r in records], "float64"
    ).T
    deepest = np.array([r.reference[0] for r in records], "float64")
    terms = np.stack([1 / depth - 1 / deepest, alpha / np.sqrt(depth * width)], axis=1) ** power
    factors, _ = nnls(terms / error[:, None] ** power, np.ones(len(error)))
    parts = terms * factors
    fitted = parts.sum(axis=1) ** (1 / power)
    a, b = factors ** (1 / power)
    return DepthFit(
        a=float(a),
        b=float(b),
        share=parts[:, 0] / np.maximum(parts.sum(axis=1), 1e-300),
        fitted=fitted,
        misfit=float(np.sqrt(np.mean((fitted / error - 1) ** 2))),
    )


@dataclasses.dataclass(frozen=True)
class Refinement:
    """How far outputs are from those with the finest steps.

    Args:
        name: The stage, or `"output"` for what a model gives.
        parts: Into how many parts each particle was split, on the average.
        particles: Number of particles; of a model, of all its stages.
        error: Distance of the outputs to those of the finest, `|X - X'| / |X'|`.
        change: Distance to the outputs of the next finer, in the same unit; NaN for the finest.
        order: Observed order: `log2` of this change over the next. Error `dt^p` gives `p`. NaN for
            the last two.
    """

    name: str
    parts: int
    particles: int
    error: float
    change: float
    order: float


def refinement_error(
    network: MeanFieldStage | keras.Model, x: Any, doublings: int = 4, rule: Any = "split"
) -> list[Refinement]:
    """How the output converges as the particles of a trained stage are refined.

    With `n` particles a stage is refined to `2 n`, `4 n`, ... of the same horizon by a rule of
    `mf_zoo.depth`, nothing is trained, statistics of BatchNormalization stay. Where weights are
    constant on the cells of the particles (`"split"`), the limit is the flow
    `dX/dt = f(X, theta_l)` on the cell of block `l`, kept where the activation projects to. That is
    the limit of *this* measure: not of networks that are trained at ever greater depth, of which
    the theorem cited by `depth_error` speaks, and no network that training has seen.

    Args:
        network: A built stage; or a functional model, which gives records for each stage by itself,
            at the inputs that it has in the model, and for the output with all stages refined.
        x: Inputs, batch first: of the stage, or of the model, as `predict` takes them.
        doublings: How many times the steps are halved, at least 1.
        rule: `"split"`, `"constant"`, `"linear"` or a callable: see `mf_zoo.layers.measures`.

    Returns:
        A `Refinement` for each number of parts, 1, 2, ..., `2 ** doublings`; of a model first those
        of each stage, from input to output, then those of the output.

    Raises:
        ValueError: If `doublings` is no positive integer, or what `mf_zoo.theory.cut` raises.

    Source: Hairer, Nørsett, Wanner, *Solving Ordinary Differential Equations I*, 1993, chapter II
    (the order of Euler's method).

    Example:

    >>> stage = MeanFieldStage(keras.layers.Dense(2, kernel_initializer="identity"), 1)
    >>> stage.build((None, 2))
    >>> found = mf_zoo.theory.refinement_error(stage, np.ones((1, 2)), doublings=6)
    >>> [record.particles for record in found][:3]  # towards e
    [1, 2, 4]
    >>> 0.9 < found[4].order < 1
    True
    """
    if isinstance(doublings, bool) or not isinstance(doublings, int) or doublings < 1:
        raise ValueError(
            f"`doublings` must be a positive integer. Received: doublings={doublings!r}"
        )
    chosen = measures.get(rule)
    if isinstance(network, MeanFieldStage):
        runs = [refined_output(network, x, 2**k, chosen) for k in range(doublings + 1)]
        return _convergence(network.name, [network], runs)
    parts = segments.cut(network)
    found = []
    states = [parts.pieces[0](ops.convert_to_tensor(x), training=False)] * (doublings + 1)
    for piece, stage in zip(parts.pieces[1:], parts.stages, strict=True):
        # Of the network as it is; its own refinements continue from their own states.
        alone = [refined_output(stage, states[0], 2**k, chosen) for k in range(doublings + 1)]
        found += _convergence(stage.name, [stage], alone)
        if states[1] is states[0]:
            together = alone
        else:
            finer = range(1, doublings + 1)
            together = [alone[0]]
            together += [refined_output(stage, states[k], 2**k, chosen) for k in finer]
        states = [piece(state, training=False) for state in together]
    return found + _convergence("output", parts.stages, states)


def refined_output(stage: MeanFieldStage, x: Any, parts: int, rule: Any = "split") -> Any:
    """What a stage would give with `parts` times as many particles.

    It is computed with the stage's own residual function, integrator and activation; no deeper
    stage is made.

    Args:
        stage: A built stage.
        x: Its inputs, batch first.
        parts: Factor of the number of particles.
        rule: As of `refinement_error`.

    Returns:
        Tensor of the shape of `x`, in the stage's compute dtype.

    Example:

    >>> stage = MeanFieldStage(keras.layers.Dense(1, kernel_initializer="ones"), 1)
    >>> stage.build((None, 1))
    >>> float(refined_output(stage, np.ones((1, 1)), 2)[0, 0])  # (1 + 1 / 2)^2
    2.25
    """
    count = parts * stage.num_particles
    measure = measures.measure_of(stage)
    found = measures.get(rule)(measure, count)
    source = found.mixing.argmax(axis=1)
    weights = [
        # The state of a random generator is no quantity.
        value[source] if value.dtype.kind in "iub" else found.apply(value)
        for value in measure.weights
    ]
    state = stage._prepared(x)
    arguments = stage._block_arguments(False)
    with keras.StatelessScope(stage._current()):
        for position, step in enumerate(found.steps):
            values = []
            for k, (weight, variable) in enumerate(zip(weights, stage._stacked, strict=True)):
                factor = step if k in stage._folded else 1
                value = (weight[position] * factor).astype(weight.dtype)
                value = ops.convert_to_tensor(value, dtype=variable.dtype)
                values.append(value)
            step = ops.convert_to_tensor(step, dtype=stage.times.dtype)
            state, _, _ = stage._block_step(state, values, step, arguments)
    return state


def _convergence(
    name: str, refined: Sequence[MeanFieldStage], outputs: Sequence[Any]
) -> list[Refinement]:
    values = [ops.convert_to_numpy(ops.cast(x, "float32")).astype("float64") for x in outputs]
    unit = max(np.linalg.norm(values[-1]), 1e-300)
    errors = [np.linalg.norm(value - values[-1]) / unit for value in values]
    changes = [np.linalg.norm(b - a) / unit for a, b in itertools.pairwise(values)]
    orders = [np.log2(a / b) if a > 0 and b > 0 else np.nan for a, b in itertools.pairwise(changes)]
    particles = sum(stage.num_particles for stage in refined)
    return [
        Refinement(name, 2**k, 2**k * particles, float(error), float(change), float(order))
        for k, (error, change, order) in enumerate(
            zip(errors, [*changes, np.nan], [*orders, np.nan, np.nan], strict=True)
        )
    ]
