"""Is every local minimum global? Many small networks, trained to the end side by side."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from mf_zoo import devices
from mf_zoo.layers import quadrature
from mf_zoo.layers.particles import ParticleInfo
from mf_zoo.optimizers import MeanFieldSGD

STARTS = ("random", "equal", "zero output", "zero", "dead")


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Samples that a network is to fit.

    Args:
        name: What they are, for tables.
        x: `(samples, features)`, float.
        y: `(samples,)`, float targets.
        seed: Seed of the networks that are trained on it.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    seed: int = 0

    @property
    def linear_loss(self) -> float:
        """The least mean squared error that an affine function of `x` can have."""
        design = np.column_stack([self.x, np.ones(len(self.x))]).astype("float64")
        best = np.linalg.lstsq(design, self.y, rcond=None)[0]
        return float(np.mean((design @ best - self.y) ** 2))


def sphere(samples: int = 16, dimension: int = 4, seed: int = 0) -> Problem:
    """Distinct points on a sphere with generic targets: what the theory's assumption covers.

    The theorem that every local minimum is global assumes that the loss 0 can be reached, which a
    universal approximation property gives. On finitely many points it asks that they be distinct
    where their targets are. So inputs are independent and uniform on the unit sphere, hence
    distinct, and targets independent and uniform on [-1, 1]: no rule is to be found, only to be
    memorised.

    Args:
        samples: Number of points.
        dimension: Of the space in which the sphere lies.
        seed: Seed of the points and of their targets.

    Returns:
        A `Problem`, whose seed is the same.

    Source: the zero-loss assumption of Lu, Ma, Lu, Lu, Ying, *A Mean-field Analysis of Deep ResNet
    and Beyond*, ICML 2020, arXiv 2003.05508; the points are ours.

    Example:

    >>> problem = mf_zoo.theory.sphere(5, 3)
    >>> np.linalg.norm(problem.x, axis=1).round(6).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0]
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, dimension))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return Problem("sphere", x, rng.uniform(-1, 1, samples), seed)


def image_problem(
    images: np.ndarray,
    labels: np.ndarray,
    samples: int = 16,
    dimension: int = 4,
    classes: tuple[int, int] = (3, 5),
    seed: int = 0,
) -> Problem:
    """Real images of two classes as points on a sphere, with the targets -1 and 1.

    Pixels are averaged over squares of 8 x 8, centred, projected to their first principal
    components, each of which is given the variance 1, and divided by their norm.

    Args:
        images: `(count, rows, columns, channels)`, rows and columns multiples of 8.
        labels: `(count,)`, integers.
        samples: Number of images, half of each class: drawn at random of those there are.
        dimension: Number of principal components.
        classes: The two labels; 3 and 5 are the cats and dogs of CIFAR-10.
        seed: Seed of the draw.

    Returns:
        A `Problem`, whose seed is the same.

    Raises:
        ValueError: If there are too few images of a class.

    Example:

    >>> images, labels = mf_zoo.data.sample("cifar10")
    >>> problem = mf_zoo.theory.image_problem(images, labels)
    >>> problem.x.shape, float(problem.y.sum())
    ((16, 4), 0.0)
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for label in classes:
        found = np.flatnonzero(labels == label)
        if len(found) < samples // 2:
            raise ValueError(
                f"There must be {samples // 2} images of each class. "
                f"Received: {len(found)} of class {label}"
            )
        chosen.append(rng.permutation(found)[: samples // 2])
    _, rows, columns, channels = images.shape
    pixels = images[np.concatenate(chosen)].astype("float64")
    pooled = pixels.reshape(-1, rows // 8, 8, columns // 8, 8, channels).mean((2, 4))
    pooled = pooled.reshape(len(pooled), -1)
    left, _, _ = np.linalg.svd(pooled - pooled.mean(0), full_matrices=False)
    x = left[:, :dimension]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return Problem("images", x, np.repeat([-1.0, 1.0], len(x) // 2), seed)


@dataclasses.dataclass(frozen=True)
class Network:
    """A kind of network, and how it is trained.

    Args:
        deep: Whether blocks follow one another; otherwise all see the input, as in a wide network
            of two layers.
        mean_field: Whether the horizon is fixed, blocks are particles with times that are trained,
            and gradients are multiplied by `n / T`. Otherwise it is an ordinary network: every step
            is 1, initial weights are smaller in deeper networks, and gradients are as they are.
        learning_rate: Of gradient descent on all samples at once, with momentum 0.9.
        time_rate: Learning rate of the times, in units of `learning_rate`. It replaces the factor
            `n / T`: the derivative by a time, `<p, f_l - f_(l+1)>` where steps are equal, does not
            get smaller with the number of particles unless neighbours in depth become alike, and
            multiplied by `n / T` it would move times the faster the more there are.
        noise_temperature: Of `mf_zoo.optimizers.MeanFieldSGD`, in the first part of the training.
    """

    deep: bool = True
    mean_field: bool = True
    learning_rate: float = 0.01
    time_rate: float = 1.0
    noise_temperature: float = 0.0


# Rates were chosen on the problems of the picture `minima`, by the final loss, with more tries for
# the mean-field network than for the others: comparisons between kinds are no ranking.
NETWORKS = {
    "mean-field": Network(),
    "mean-field, noise": Network(noise_temperature=1e-3),
    "shallow": Network(deep=False),
    "ResNet": Network(mean_field=False),
}
MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Run:
    """What became of one network.

    Args:
        problem, seed: Name and seed of the `Problem`.
        network: Name of the `Network`.
        start: Where it started, one of `"random"`, `"equal"`, `"zero output"`, `"zero"`, `"dead"`.
        particles: Number `n` of blocks.
        width: Hidden neurons of a block.
        parameters: Number of weights on which the output depends, times excluded.
        steps: Number of steps of gradient descent.
        initial_loss: Mean squared error before.
        loss: Mean squared error after.
        linear_loss: That of the best affine function of the inputs.
    """

    problem: str
    seed: int
    network: str
    start: str
    particles: int
    width: int
    parameters: int
    steps: int
    initial_loss: float
    loss: float
    linear_loss: float


class NarrowNetworks(keras.layers.Layer):
    """Networks of narrow blocks, side by side: each has its own inputs, weights and times.

    Network `r` is `mf_zoo.layers.MeanFieldStage(ResidualUnit(width), particles)` on the state
    `X(0) = (x, 1, 0)`, and its output is the last coordinate of the last state. All networks of a
    layer are computed at once: that is what makes an experiment with hundreds of them quick.

    Args:
        networks: Number of networks.
        particles: Blocks of each.
        width: Hidden neurons of a block.
        deep: As in `Network`.
        horizon: Length `T` of the time interval.
        train_times: Whether the times are trained.
        activation: Of the hidden neurons.
        **kwargs: Keyword arguments of `keras.layers.Layer`.

    Input shape: `(samples, networks, features)`. Output shape: `(samples, networks)`.

    Attributes:
        inner: Variable `(networks, particles, features + 2, width)`, the matrices `A`.
        outer: Variable `(networks, particles, width, features + 2)`, the matrices `B`.
        times: Variable `(networks, particles)`; `mf_zoo.optimizers.MeanFieldSGD` keeps them in
            `[0, T]`.

    Example:

    >>> layer = mf_zoo.theory.NarrowNetworks(networks=5, particles=3, width=2)
    >>> keras.ops.shape(layer(keras.ops.ones((10, 5, 4))))
    (10, 5)
    """

    def __init__(
        self,
        networks: int,
        particles: int,
        width: int,
        deep: bool = True,
        horizon: float = 1.0,
        train_times: bool = True,
        activation: Any = "tanh",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.networks = networks
        self.particles = particles
        self.width = width
        self.deep = bool(deep)
        self.horizon = float(horizon)
        self.train_times = bool(train_times)
        self.activation = keras.activations.get(activation)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        features, shape = input_shape[-1] + 2, (self.networks, self.particles)
        grid = quadrature.grid(quadrature.get("backward"), self.particles, self.horizon)
        self.times = self.add_weight(
            shape=shape,
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(
                np.broadcast_to(grid, shape).astype("float32")
            ),
            trainable=self.train_times,
            name="times",
        )
        self.inner = self.add_weight(shape=(*shape, features, self.width), name="inner")
        self.outer = self.add_weight(shape=(*shape, self.width, features), name="outer")
        for variable in (self.times, self.inner, self.outer):
            kind = "time" if variable is self.times else "block"
            variable.mean_field = ParticleInfo(kind, self.particles, self.horizon)

    def call(self, inputs: Any) -> Any:
        order = ops.argsort(self.times, axis=1)
        # By a product with a matrix of zeros and ones: exact, and its gradient is dense.
        place = ops.one_hot(order, self.particles, dtype=self.compute_dtype)
        times = ops.transpose(ops.squeeze(ops.matmul(place, self.times[..., None]), -1))
        steps = ops.transpose(quadrature.get("backward")(times, self.horizon))

        def sort(weight: Any) -> Any:
            flat = ops.reshape(weight, (self.networks, self.particles, -1))
            return ops.reshape(ops.matmul(place, flat), weight.shape)

        inner, outer = sort(self.inner), sort(self.outer) * steps[..., None, None]
        x = ops.transpose(inputs, (1, 0, 2))
        x = ops.concatenate([x, ops.ones_like(x[..., :1]), ops.zeros_like(x[..., :1])], -1)
        if self.deep:
            pairs = zip(ops.unstack(inner, axis=1), ops.unstack(outer, axis=1), strict=True)
            for a, b in pairs:
                x = x + ops.matmul(self.activation(ops.matmul(x, a)), b)
            return ops.transpose(x[..., -1])
        # All at once, as one wide layer.
        features, neurons = x.shape[-1], self.particles * self.width
        a = ops.reshape(ops.transpose(inner, (0, 2, 1, 3)), (self.networks, features, neurons))
        b = ops.reshape(outer, (self.networks, neurons, features))
        hidden = self.activation(ops.matmul(x, a))
        return ops.transpose(ops.squeeze(ops.matmul(hidden, b[..., -1:]), -1))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        return tuple(input_shape[:2])


def minima(
    problems: Sequence[Problem],
    particles: Sequence[int] = (1, 2, 4, 8, 16, 32),
    widths: Sequence[int] = (2,),
    networks: Mapping[str, Network] | None = None,
    starts: Sequence[str] = ("random",),
    steps: int = 800,
    horizon: float = 1.0,
    activation: Any = "tanh",
) -> list[Run]:
    """Trains small networks until their training loss falls no more, and says where it ended.

    For each number of particles, width and kind of network one network is trained for each problem
    and start, by gradient descent on all samples: the Wasserstein gradient flow, in steps, of the
    mean squared error. Where a landscape has no local minimum that is not global, and there are
    enough particles to fit the samples, the loss goes to 0 from wherever it starts.

    A network with noise is trained with it for three quarters of the steps, and without it for the
    rest: what is compared is the minimum to which it has come, not the noise about it.

    The shallow network of `n` particles has `n` blocks of as many neurons as it takes to have at
    least as many weights as the deep one. (Of a shallow block's output matter only the weights of
    the last coordinate, and the coordinate of the input that is 0 has none that matter.)

    Args:
        problems: What to fit, all of as many samples and features. For several seeds give several.
        particles: Numbers of particles.
        widths: Numbers of hidden neurons of a block.
        networks: Kinds of networks by name; `None` for `mf_zoo.theory.NETWORKS`.
        starts: Initial weights of the blocks: `"random"`; `"equal"`, all neurons of all blocks are
            the same; `"zero output"`, the factors `B` are 0; `"zero"`, both factors are; `"dead"`,
            random, but each neuron with a bias of -1.1 times the norm of its other weights, so that
            no ReLU answers to any point of the unit ball. Times start on the grid.
        steps: Steps of gradient descent.
        horizon: Length `T` of the time interval of mean-field networks.
        activation: Of the hidden neurons.

    Returns:
        A `Run` for each network.

    Raises:
        ValueError: If problems differ in size, or for an unknown start.

    Source: Lu, Ma, Lu, Lu, Ying, *A Mean-field Analysis of Deep ResNet and Beyond*, ICML 2020,
    arXiv 2003.05508: every local minimizer of the continuum limit is global.

    Example:

    >>> runs = mf_zoo.theory.minima([mf_zoo.theory.sphere(8, 2)], particles=[2], steps=20)
    >>> [run.network for run in runs]
    ['mean-field', 'mean-field, noise', 'shallow', 'ResNet']
    >>> all(run.loss < run.initial_loss for run in runs)
    True
    """
    networks = NETWORKS if networks is None else networks
    shapes = {problem.x.shape for problem in problems}
    if len(shapes) != 1:
        raise ValueError(
            "`problems` must all have as many samples and features. "
            f"Received: inputs of the shapes {sorted(shapes)}"
        )
    unknown = [start for start in starts if start not in STARTS]
    if unknown or not starts:
        raise ValueError(f"`starts` must be some of {STARTS}. Received: starts={tuple(starts)}")
    return [
        run
        for n in particles
        for width in widths
        for name, network in networks.items()
        for run in _train(problems, n, width, name, network, starts, steps, horizon, activation)
    ]


def _train(
    problems: Sequence[Problem],
    n: int,
    width: int,
    name: str,
    network: Network,
    starts: Sequence[str],
    steps: int,
    horizon: float,
    activation: Any,
) -> list[Run]:
    cases = [(problem, start) for start in starts for problem in problems]
    features = problems[0].x.shape[1] + 2
    weights = 2 * features * width
    if not network.deep:
        width = -(-weights // features)  # features - 1 into a neuron and 1 out of it
        weights = features * width
    layer = NarrowNetworks(
        len(cases),
        n,
        width,
        network.deep,
        horizon if network.mean_field else n,
        network.mean_field,
        activation,
    )
    x = np.stack([problem.x for problem, _ in cases], 1).astype("float32")
    y = np.stack([problem.y for problem, _ in cases], 1).astype("float32")
    layer.build(x.shape)
    initial = [
        initial_weights(start, (n, features, width), problem.seed, network.mean_field)
        for problem, start in cases
    ]
    layer.inner.assign(np.stack([inner for inner, _ in initial]))
    layer.outer.assign(np.stack([outer for _, outer in initial]))
    model = keras.Sequential([keras.Input(x.shape[1:]), layer])
    before = _losses(layer, x, y)
    noisy = steps * 3 // 4 if network.noise_temperature else 0
    parts = ((noisy, network.noise_temperature), (steps - noisy, 0.0))
    for number, temperature in parts:
        if not number:
            continue
        optimizer = MeanFieldSGD(
            network.learning_rate,
            MOMENTUM,
            mean_field_scaling=network.mean_field,
            time_learning_rate_multiplier=network.time_rate * layer.horizon / n,
            noise_temperature=temperature,
            seed=n,
        )
        model.compile(optimizer, _sum_of_squares, jit_compile=devices.jit_compile())
        model.fit(_FullBatch(x, y, number), epochs=1, verbose=0, shuffle=False)
    after = _losses(layer, x, y)
    return [
        Run(
            problem=problem.name,
            seed=problem.seed,
            network=name,
            start=start,
            particles=n,
            width=width,
            parameters=n * weights,
            steps=steps,
            initial_loss=float(first),
            loss=float(last),
            linear_loss=problem.linear_loss,
        )
        for (problem, start), first, last in zip(cases, before, after, strict=True)
    ]


def initial_weights(
    start: Literal["random", "equal", "zero output", "zero", "dead"],
    shape: tuple[int, int, int],
    seed: int,
    mean_field: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Initial weights of a network of narrow blocks.

    Args:
        start: As in `minima`.
        shape: `(particles, features, width)`, the features being those of the state.
        seed: Seed of the draw.
        mean_field: Whether the blocks are particles: then all weights have the variance 1 (inner:
            divided by the number of features). Otherwise the variance of `B` is 1 divided by the
            number of all hidden neurons, so that a network of steps 1 starts with states of the
            same size at every depth.

    Returns:
        `(inner, outer)`: `(particles, features, width)` and `(particles, width, features)`.

    Example:

    >>> inner, outer = mf_zoo.theory.initial_weights("equal", (2, 3, 1), seed=0)
    >>> bool(np.all(inner[0] == inner[1]))
    True
    """
    n, features, width = shape
    rng = np.random.default_rng((seed, n, width))
    inner = rng.normal(size=(n, features, width)) / np.sqrt(features)
    outer = rng.normal(size=(n, width, features))
    if not mean_field:
        outer /= np.sqrt(n * width)
    if start == "equal":
        inner = np.broadcast_to(inner[:1, :, :1], inner.shape)
        outer = np.broadcast_to(outer[:1, :1], outer.shape)
    if start in ("zero output", "zero"):
        outer = np.zeros_like(outer)
    if start == "zero":
        inner = np.zeros_like(inner)
    if start == "dead":
        inner = inner.copy()
        # The last coordinate but one starts at 1, the last at 0.
        inner[:, -2] = -1.1 * np.linalg.norm(inner[:, :-2], axis=1)
    return inner, outer


class _FullBatch(keras.utils.PyDataset):
    """All samples, again and again."""

    def __init__(self, x: np.ndarray, y: np.ndarray, steps: int):
        super().__init__()
        self.batch, self.steps = (x, y), steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.batch


def _sum_of_squares(y: Any, outputs: Any) -> Any:
    """Of each sample, summed over the networks: the gradient of each is that of its own loss."""
    return ops.sum(ops.square(outputs - y), axis=-1)


def _losses(layer: NarrowNetworks, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    outputs = ops.convert_to_numpy(layer(ops.convert_to_tensor(x)))
    return np.mean((outputs.astype("float64") - y) ** 2, axis=0)
