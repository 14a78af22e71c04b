"""Which path lengths carry the gradient of a residual network."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from mf_zoo.layers import MeanFieldStage
from mf_zoo.theory import autodiff
from mf_zoo.theory.interventions import check_labels, labelled, per_image, whole_numbers
from mf_zoo.theory.segments import Segments, cut


@dataclasses.dataclass(frozen=True, eq=False)
class PathLengths:
    """How the gradient at the input of a network is made of paths of every length.

    All norms are Euclidean, of one image's gradient of its own loss, and averaged over the images.

    Args:
        length: int64 `(L + 1,)`: 0 ... L, the number of particles that a path takes; `L` is the
            number of particles of the network.
        layers: int64 `(L + 1,)`: the same in convolutions or dense layers, counted in particles
            alone; `None` if the blocks of the stages have different numbers of them.
        paths: Float64 `(L + 1,)`: how many paths have that length, `binomial(L, k)`.
        norm: Float64 `(L + 1,)`: norm of the part of the gradient that all paths of that length
            carry together.
        share: Float64 `(L + 1,)`: that part's share of the gradient: its inner product with the
            whole gradient, over the square of the whole one's norm, both summed over the images.
            Shares add up to 1; one is negative where paths of that length work against the rest.
        path_norm: Float64 `(L + 1,)`: norm of the gradient along a single path of that length, mean
            over random paths and images.
        path_deviation: Float64 `(L + 1,)`: standard deviation of it over paths and images.
        total: Float64 `(L + 1,)`: `paths * path_norm`, the quantity of Veit et al.: what paths of
            that length would carry if their gradients did not cancel.
        gradient_norm: Norm of the whole gradient.
        samples: Number of random paths of every length for each image.
        images: Number of images.
    """

    length: np.ndarray
    layers: np.ndarray | None
    paths: np.ndarray
    norm: np.ndarray
    share: np.ndarray
    path_norm: np.ndarray
    path_deviation: np.ndarray
    total: np.ndarray
    gradient_norm: float
    samples: int
    images: int

    def carriers(self, fraction: float = 0.9) -> tuple[int, int]:
        """The narrowest range of lengths that has a fraction of the sum of `total`.

        Args:
            fraction: From 0 to 1.

        Returns:
            The first and the last length of the range; of two equally narrow ones that which has
            more.

        Example:

        >>> found = mf_zoo.theory.PathLengths(
        ...     *(np.arange(4), None, np.ones(4), np.ones(4), np.ones(4)),
        ...     *(np.ones(4), np.zeros(4), np.array([1.0, 6.0, 3.0, 0.0]), 1.0, 1, 1),
        ... )
        >>> found.carriers(0.9), found.carriers(0.6)
        ((1, 2), (1, 1))
        """
        if not 0 <= fraction <= 1:
            raise ValueError(
                f"`fraction` must be a number from 0 to 1. Received: fraction={fraction!r}"
            )
        sums = np.concatenate([[0.0], np.cumsum(self.total)])
        goal = fraction * sums[-1] * (1 - 1e-12)
        n = len(self.total)
        for width in range(1, n + 1):
            found = sums[width:] - sums[:-width]
            if found.max() >= goal:
                first = int(found.argmax())
                break
        return int(self.length[first]), int(self.length[first + width - 1])


def path_lengths(
    model: keras.Model,
    x: Any,
    y: Any = None,
    *,
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 20,
    loss: Any = "sparse_categorical_crossentropy",
) -> PathLengths:
    """Which path lengths carry the gradient of the loss with respect to the input.

    Backwards through a stage, the gradient passes each particle on two ways: through its residual
    function or past it. A choice for every particle is a path, and its length `k` is the number of
    particles that it takes. There are `binomial(L, k)` paths of length `k`, and the gradient is the
    sum over all `2^L` of them. What is no particle (the stem, the blocks at the heads of stages,
    the classifier) is passed as one piece by all paths and does not count. The activation after a
    step belongs to both ways.

    Two measures are given for each length.

    - Exact: the part `p_k` that all paths of length `k` carry together, from the recursion
      `p_k^(l-1) = S^T p_k^l + F^T p_(k-1)^l` with `S` the derivative of the step past the residual
      function and `F` that through it. `sum_k p_k` is the gradient.
    - That of Veit et al.: the mean norm of the gradient along one random path, times the number of
      paths. It takes no notice of paths whose gradients cancel, so its sum exceeds the norm of the
      gradient.

    Blocks run in inference mode (statistics of BatchNormalization as they are), where every image
    has a gradient of its own; Veit et al. take batches in training. The time is that of about
    `2 (1 + samples) (L + 1)` ordinary gradients.

    Args:
        model: A built functional classifier that is a chain of stages, as `mf_zoo.theory.cut` takes
            it, whose stages have the integrator `"euler"`, or one of your own that evaluates a
            block once a step, at the state before it. It is not changed.
        x: Images as the model takes them, an array; or batches of `(x, y)`: a `PyDataset`, a
            `tf.data.Dataset`, a `DataLoader`, a generator that ends. These are read once and kept.
        y: Integer labels `(count,)`; `None` with batches.
        samples: Number of random paths of each length for each image; 0 for none (then `path_norm`
            and what is made of it are NaN).
        seed: Seed of the random paths.
        batch_size: Images in a batch of an array. `(1 + samples) (L + 1)` times as many go through
            a block at once, so a deep network needs a small one.
        loss: A loss of integer labels and outputs, as in `compile`. The default takes outputs as
            probabilities; for a model that ends in logits give
            `keras.losses.SparseCategoricalCrossentropy(from_logits=True)`.

    Returns:
        A `PathLengths`.

    Raises:
        ValueError: For a model that is no chain of stages, another integrator, or labels that are
            no classes of the model.

    Source: Veit, Wilber, Belongie, *Residual Networks Behave Like Ensembles of Relatively Shallow
    Networks*, NIPS 2016, arXiv 1605.06431, section 5 (*The importance of short paths in residual
    networks*), for the second measure. The recursion is the chain rule.

    Example:

    >>> model = mf_zoo.applications.MFResNet20(weights="cifar10")
    >>> images, labels = mf_zoo.data.sample("cifar10")
    >>> found = mf_zoo.theory.path_lengths(model, images[:10], labels[:10])
    >>> found.paths.tolist(), round(float(found.share.sum()), 4)
    ([1.0, 7.0, 21.0, 35.0, 35.0, 21.0, 7.0, 1.0], 1.0)
    """
    batches = labelled(x, y, batch_size)
    (samples,) = whole_numbers(samples, "samples", 0)
    parts, loss = _checked(model), per_image(loss)
    depth = sum(stage.num_particles for stage in parts.stages)
    generator = np.random.default_rng(seed)
    norms, inner, squares, wholes, paths = [], 0.0, 0.0, [], []
    for images, labels in batches:
        taken = _random_paths(depth, samples, len(images), generator)
        exact, single = _gradients(parts, images, labels, loss, taken)
        exact = exact.reshape(depth + 1, len(images), -1)
        whole = exact.sum(axis=0)
        norms.append(np.linalg.norm(exact, axis=2))
        wholes.append(np.linalg.norm(whole, axis=1))
        inner += np.sum(exact * whole, axis=(1, 2))
        squares += np.sum(whole**2)
        # A list, for there may be no single path.
        paths += [np.linalg.norm(one.reshape(depth + 1, len(images), -1), axis=2) for one in single]
    path_norms = np.concatenate(paths, axis=1) if samples else np.full((depth + 1, 1), np.nan)
    counts = np.array([math.comb(depth, k) for k in range(depth + 1)], "float64")
    layers = {_layers(stage) for stage in parts.stages}
    lengths = np.arange(depth + 1)
    return PathLengths(
        length=lengths,
        layers=lengths * layers.pop() if len(layers) == 1 else None,
        paths=counts,
        norm=np.concatenate(norms, axis=1).mean(axis=1),
        share=inner / squares if squares else np.full(depth + 1, np.nan),
        path_norm=path_norms.mean(axis=1),
        path_deviation=path_norms.std(axis=1),
        total=counts * path_norms.mean(axis=1),
        gradient_norm=float(np.concatenate(wholes).mean()),
        samples=samples,
        images=sum(len(labels) for _, labels in batches),
    )


def gradient_parts(
    model: keras.Model, x: Any, y: Any, loss: Any = "sparse_categorical_crossentropy"
) -> np.ndarray:
    """The parts of the gradient at the input that paths of each length carry together.

    Args:
        model: As of `path_lengths`.
        x: Images as the model takes them, `(count, ...)`, few.
        y: Integer labels `(count,)`.
        loss: As of `path_lengths`.

    Returns:
        Float64 array `(L + 1, count, ...)`: entry `[k, i]` is the part of length `k` of the
        gradient of image `i`'s loss. The sum over `k` is the gradient, to rounding.

    Example:

    >>> model = mf_zoo.applications.ResNet20(weights="cifar10")
    >>> images, labels = mf_zoo.data.sample("cifar10")
    >>> mf_zoo.theory.gradient_parts(model, images[:2], labels[:2]).shape
    (8, 2, 32, 32, 3)
    """
    ((images, labels),) = labelled(x, y, max(len(x), 1))
    parts = _checked(model)
    depth = sum(stage.num_particles for stage in parts.stages)
    taken = np.zeros((0, depth + 1, len(images), depth), bool)
    return _gradients(parts, images, labels, per_image(loss), taken)[0]


def _checked(model: keras.Model) -> Segments:
    """A model cut at its stages, each of which passes a block once, at the state before it."""
    parts = cut(model)
    for stage in parts.stages:
        state, seen = ops.ones((1,)), []

        def update(x: Any, seen: list = seen) -> Any:
            seen.append(x)
            return x

        stage.integrator(state, update, stage.activation)
        if len(seen) != 1 or seen[0] is not state:
            raise ValueError(
                "The integrator of a stage must evaluate a block once a step, at the state before "
                "it, as Euler's method does: else a path through the block is none of the two. "
                f"Received: {type(stage.integrator).__name__} in stage {stage.name!r}"
            )
    return parts


def _random_paths(
    depth: int, samples: int, images: int, generator: np.random.Generator
) -> np.ndarray:
    """Whether a path takes a particle: bool `(samples, L + 1, images, L)`, `k` of `L` of them."""
    ranks = generator.random((samples, depth + 1, images, depth)).argsort(axis=3).argsort(axis=3)
    return ranks < np.arange(depth + 1)[:, None, None]


def _layers(stage: MeanFieldStage) -> int:
    """How many convolutions or dense layers a block has, one after another."""
    return sum(hasattr(layer, "kernel") for layer in stage.template()._flatten_layers())


def _gradients(
    parts: Segments, images: np.ndarray, labels: np.ndarray, loss: Callable, taken: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of each image's loss with respect to its pixels, by path.

    Returns:
        Float64 `(L + 1, images, ...)`, all paths of a length together, and `(samples, L + 1,
        images, ...)`, the single paths that `taken` describes.
    """
    samples, groups, count, depth = taken.shape
    x = ops.cast(ops.convert_to_tensor(images), "float32")
    copies = groups * (1 + samples)
    # Gradients lie one behind another in the batch: the groups of all paths, then single paths.
    # Every one goes through every block, whether that is taken or not: twice the work, but the
    # shapes are the same for all blocks of a stage, so JAX compiles no operation anew for each.
    *chain, (last, state, _, _) = _forward(parts, x)
    targets = ops.convert_to_tensor(labels)

    def losses(state: Any) -> Any:
        outputs = last(state)
        check_labels(outputs.shape, labels)
        return ops.sum(loss(targets, outputs))

    _, (p,) = autodiff.vjp(losses, [state])
    # Behind the last stage all is of length 0. Every single path starts there.
    p = ops.concatenate([p, _copies(ops.zeros_like(p), groups - 1), _copies(p, groups * samples)])
    particle = depth
    for apply, before, stage, position in reversed(chain):
        states = _copies(before, copies)
        if stage is None:
            _, (p,) = autodiff.vjp(apply, [states], p)
            continue
        particle -= 1
        update = _update(stage, position)
        updates = _copies(update(before), copies)

        def step(state: Any, added: Any, stage: MeanFieldStage = stage) -> Any:
            return stage.integrator(state, lambda _: added, stage.activation)

        _, (past, into) = autodiff.vjp(step, [states, updates], p)
        _, (through,) = autodiff.vjp(update, [states], into)
        rows = groups * count
        longer = ops.concatenate([ops.zeros_like(through[:count]), through[: rows - count]])
        mask = taken[..., particle].reshape((-1,) + (1,) * (len(p.shape) - 1))
        single = ops.where(ops.convert_to_tensor(mask), through[rows:], past[rows:])
        p = ops.concatenate([past[:rows] + longer, single])
    p = ops.convert_to_numpy(ops.cast(p, "float32")).astype("float64")
    p = p.reshape((1 + samples, groups, *images.shape))
    return p[0], p[1:]


def _copies(x: Any, number: int) -> Any:
    """Copies of a batch one behind another."""
    return ops.tile(x, (number,) + (1,) * (len(x.shape) - 1))


def _update(stage: MeanFieldStage, position: int) -> Callable[[Any], Any]:
    return lambda state: stage.update(state, position)


def _forward(
    parts: Segments, x: Any
) -> Iterator[tuple[Callable | None, Any, MeanFieldStage | None, int]]:
    """Everything on the way from input to output, with the state before it.

    Yields:
        `(piece, state, None, 0)` for what is no particle, as a function of a state, and
        `(None, state, stage, position)` for a particle.
    """
    for k, piece in enumerate(parts.pieces):

        def apply(state: Any, piece: Any = piece) -> Any:
            return piece(state, training=False)

        yield apply, x, None, 0
        if k < len(parts.stages):
            *states, x = parts.stages[k].states(apply(x))
            for position, before in enumerate(states):
                yield None, before, parts.stages[k], position
