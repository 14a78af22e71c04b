"""Whether the weights of a stage are smooth in depth."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from mf_zoo.layers import MeanFieldStage, measures

_EXACT = 9  # up to how many particles all orders are tried: 9! = 362,880
_ORDERS = 20_000  # how many random orders are drawn above that


@dataclasses.dataclass(frozen=True)
class Smoothness:
    """How near neighbours in depth are to each other, in one quantity.

    Distances are relative: `|theta_i - theta_j| / sqrt(mean_k |theta_k|^2)`. They are 0 for equal
    blocks, and near `sqrt(2)`, 1.41, for independent ones of mean 0.

    Args:
        stage: Name of the stage.
        what: Name of a variable of the block; `"kernels"`, all with two axes or more together;
            `"updates"`, what blocks add to a state.
        particles: Number of particles.
        distance: Mean distance of neighbours in depth.
        pairs: Mean distance of all pairs.
        ratio: `distance / pairs`. 1: neighbours are no nearer than any two blocks; 0: smooth. NaN
            for 1 or 2 particles, where every pair is one of neighbours, and where all are equal.
        cosine: Mean cosine similarity of neighbours.
        p_value: The part of all depth orders in which neighbours are as near in the mean, or
            nearer: small where the order matters. It cannot be less than `2 / n!`: 0.33 for 3
            particles. NaN where `ratio` is.
    """

    stage: str
    what: str
    particles: int
    distance: float
    pairs: float
    ratio: float
    cosine: float
    p_value: float


def smoothness(stage: MeanFieldStage, x: Any = None, *, seed: int = 0) -> list[Smoothness]:
    """Measures whether the blocks of a stage change smoothly from one to the next in depth.

    In weights: neighbours in depth are compared with all pairs of the same stage, and the depth
    order with all other orders. A network that was just grown by `"split"` is smooth by
    construction, for copies are neighbours. In function: hidden channels can be permuted in a block
    without a change of what it does, so blocks of distant weights may do the same. With `x` the
    updates `dt_l f(X, theta_l)` of all blocks are compared at one and the same state `X`, that of
    the middle of the stage.

    Args:
        stage: A built stage.
        x: Its inputs, batch first, for the row `"updates"`; `None` to leave that out.
        seed: Seed of the orders that are drawn where there are more than 9 particles (20,000).

    Returns:
        A `Smoothness` for `"kernels"` (all variables, where no block has a kernel), with `x` for
        `"updates"`, then for each float variable of the block. In `"kernels"` each counts in units
        of its own mean square.

    Source: Cohen, Cont, Rossier, Xu, *Scaling Properties of Deep Residual Networks*, ICML 2021,
    arXiv 2105.12245, look at the increments of weights from layer to layer. The comparison with
    pairs and orders is ours; it needs one depth only.

    Example:

    >>> stage = MeanFieldStage(keras.layers.Dense(1, use_bias=False), 4)
    >>> stage.build((None, 1))
    >>> stage.set_blocks([[np.array([[v]])] for v in (1.0, 2.0, 3.0, 4.0)])
    >>> first = mf_zoo.theory.smoothness(stage)[0]
    >>> round(first.ratio, 3), round(first.p_value, 3)  # 1 against 5 / 3; 2 of 24 orders
    (0.6, 0.083)
    """
    if not stage.built:
        raise ValueError(f"`stage` must be built. Received: {stage.name!r}, which is not")
    names = ["_".join(v.path.split("/")[-2:]) for v in stage.template().variables]
    weights = measures.measure_of(stage).weights
    pairs = list(zip(names, weights, strict=True))
    floats = [(name, w) for name, w in pairs if w.dtype.kind not in "iub" and w[0].size]
    grams = {name: _gram(weight) for name, weight in floats}
    kernels = [grams[name] for name, weight in floats if weight.ndim > 2] or list(grams.values())
    together = sum(gram / max(np.mean(np.diag(gram)), 1e-300) for gram in kernels)
    quantities = {"kernels": together}
    if x is not None:
        middle = stage.states(x)[stage.num_particles // 2]
        updates = [stage.update(middle, k) for k in range(stage.num_particles)]
        values = [ops.convert_to_numpy(ops.cast(update, "float32")) for update in updates]
        quantities["updates"] = _gram(np.stack(values))
    quantities |= grams
    orders = _orders(stage.num_particles, seed)
    return [_measured(stage, what, gram, orders) for what, gram in quantities.items()]


def depth_exponent(depths: Sequence[int], values: Sequence[float]) -> float:
    """The exponent `beta` with which a quantity falls with depth, `values ~ depth^(-beta)`.

    Of the mean distance of neighbours, with weights that do not shrink with depth, it is 1 where
    they are a smooth function of depth, 1/2 where they walk at random, 0 where blocks are
    independent.

    Args:
        depths: Numbers of particles, at least two different ones.
        values: A positive quantity at each of them, such as `Smoothness.distance`.

    Returns:
        `beta`, by least squares in the logarithms.

    Raises:
        ValueError: For fewer than two depths, or values that are not positive.

    Source: Cohen, Cont, Rossier, Xu, *Scaling Properties of Deep Residual Networks*, ICML 2021,
    arXiv 2105.12245 (logarithmic regression on depth).

    Example:

    >>> round(mf_zoo.theory.depth_exponent([2, 4, 8], [1.0, 0.5, 0.25]), 6)
    1.0
    """
    depths, values = np.asarray(depths, "float64"), np.asarray(values, "float64")
    fits = depths.shape == values.shape and len(np.unique(depths)) > 1
    if not fits or not np.all((depths > 0) & (values > 0)):
        raise ValueError(
            "`depths` must be two different positive numbers or more, with a positive value each. "
            f"Received: depths={depths.tolist()}, values={values.tolist()}"
        )
    return float(-np.polyfit(np.log(depths), np.log(values), 1)[0])


def _gram(values: np.ndarray) -> np.ndarray:
    """Inner products `(n, n)` of arrays `(n, ...)`."""
    rows = values.astype("float64").reshape(len(values), -1)
    return rows @ rows.T


def _orders(count: int, seed: int) -> np.ndarray:
    """All orders of the particles, or so many random ones; the given one is the first."""
    if count <= _EXACT:
        flat = itertools.chain.from_iterable(itertools.permutations(range(count)))
        return np.fromiter(flat, "int8", count * math.factorial(count)).reshape(-1, count)
    orders = np.tile(np.arange(count), (_ORDERS, 1))
    orders[1:] = np.random.default_rng(seed).permuted(orders[1:], axis=1)
    return orders


def _measured(stage: MeanFieldStage, what: str, gram: np.ndarray, orders: np.ndarray) -> Smoothness:
    n = len(gram)
    squares = np.diag(gram)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * gram, 0))
    # Rounding of the inner products is no distance.
    apart[apart < 1e-7 * np.sqrt(np.max(squares, initial=0))] = 0
    apart /= max(np.sqrt(squares.mean()), 1e-300)
    norms = np.sqrt(np.maximum(squares[:, None] * squares, 1e-300))
    nan = float("nan")
    distance = pairs = ratio = cosine = p_value = nan
    if n > 1:
        neighbours = np.arange(n - 1)
        distance = float(np.mean(apart[neighbours, neighbours + 1]))
        cosine = float(np.mean((gram / norms)[neighbours, neighbours + 1]))
        pairs = float(np.mean(apart[np.triu_indices(n, 1)]))
    if n > 2 and pairs > 0:
        ratio = distance / pairs
        totals = sum(apart[orders[:, k], orders[:, k + 1]] for k in range(n - 1))
        p_value = float(np.mean(totals <= totals[0] * (1 + 1e-9)))
    return Smoothness(stage.name, what, n, distance, pairs, ratio, cosine, p_value)
