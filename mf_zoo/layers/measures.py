"""The measure of a stage, and rules that say it with more particles or with fewer.

A stage is a measure `sum_i dt_i delta(theta_i)` in the order of depth. Every rule here is a linear
map: from steps `dt` and weights `theta` of `n` particles it makes those of `m`,

    theta'_j = sum_i mixing[j, i] theta_i,    the rows of `mixing` adding up to 1,

so whatever belongs to a particle, an optimizer's momentum too, goes along by the same numbers.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from keras import ops

from mf_zoo.layers import quadrature
from mf_zoo.layers.mean_field_stage import MeanFieldStage


@dataclasses.dataclass(frozen=True, eq=False)
class Measure:
    """The particles of a stage in the order of depth.

    Args:
        steps: Their step sizes, float64 `(n,)`.
        weights: Their weights, an array `(n, ...)` for each variable of a block.
        updates: Values of the residual functions on some images, `(n, ...)`, where they are known.
    """

    steps: np.ndarray
    weights: list[np.ndarray]
    updates: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Resampling:
    """What a rule makes of a measure.

    Args:
        steps: Steps of the new particles, float64 `(m,)`, with the sum of the old ones.
        mixing: Of which old particles each new one is made, float64 `(m, n)`; rows add up to 1.
    """

    steps: np.ndarray
    mixing: np.ndarray

    def apply(self, value: np.ndarray) -> np.ndarray:
        """An array `(n, ...)` of the old particles as that of the new ones, `(m, ...)`."""
        mixed = np.tensordot(self.mixing, value.astype("float64"), 1)
        return mixed.astype(value.dtype)


Rule = Callable[[Measure, int], Resampling]


def split(measure: Measure, count: int) -> Resampling:
    """Each particle becomes several of the same weights, which share its step equally.

    The particle whose parts are the longest gets the next part, the earlier one of equals. What a
    particle does is then done by Euler steps of a smaller size, so the output changes by
    `O(dt^2)` a block, `O(dt)` in all: first order in the longest step. The steps of a particle's
    copies add up to its own.

    Source: Chang, Meng, Haber, Tung, Begert, *Multi-level Residual Networks from Dynamical Systems
    View*, ICLR 2018, arXiv 1710.10348, where every block is doubled.

    Example:

    >>> from mf_zoo.layers import measures
    >>> found = measures.split(measures.Measure(np.array([1.0, 2.0]), []), 3)
    >>> found.steps.tolist(), found.mixing.argmax(axis=1).tolist()
    ([1.0, 1.0, 1.0], [0, 1, 1])
    """
    steps = measure.steps
    if count < len(steps):
        raise ValueError(
            f'The rule "split" makes at least as many particles as there are, {len(steps)}. '
            f"Received: {count} particles"
        )
    parts = np.ones(len(steps), int)
    for _ in range(count - len(steps)):
        parts[np.argmax(np.round(steps / parts, 12))] += 1
    source = np.repeat(np.arange(len(steps)), parts)
    return Resampling((steps / parts)[source], np.eye(len(steps))[source])


def constant(measure: Measure, count: int) -> Resampling:
    """Equal steps, with the weights piecewise constant in time.

    A particle's weights hold in its cell, as long as its step; a new one takes those at the middle
    of its own cell. Midpoint quadrature of a step function: first order in the new step. Only the
    sum of all steps is kept, and in a coarser measure a particle with a short step may be missing.

    Source: Queiruga, Erichson, Hodgkinson, Mahoney, *Stateful ODE-Nets using Basis Function
    Expansions*, NeurIPS 2021, arXiv 2106.10820, with this basis.

    Example:

    >>> from mf_zoo.layers import measures
    >>> found = measures.constant(measures.Measure(np.array([1.0, 2.0]), []), 4)
    >>> found.steps.tolist(), found.mixing.argmax(axis=1).tolist()
    ([0.75, 0.75, 0.75, 0.75], [0, 1, 1, 1])
    """
    edges = np.cumsum(measure.steps)
    middles = (np.arange(count) + 0.5) * (edges[-1] / count)
    # One on an edge, but for rounding, belongs to the later cell.
    source = np.searchsorted(edges, middles * (1 + 1e-12), side="right")
    source = np.minimum(source, len(edges) - 1)
    return Resampling(np.full(count, edges[-1] / count), np.eye(len(edges))[source])


def linear(measure: Measure, count: int) -> Resampling:
    """Equal steps, with the weights linear in time between neighbours.

    The weights of a particle are those at the middle of its cell; before the first middle and after
    the last they are constant. Where the weights are smooth in time they are kept to second order
    in the steps (Euler's method stays of first order). Those of a trained network need not be
    smooth: an average of two blocks whose channels mean different things does what neither does.
    Only the sum of all steps is kept.

    Source: as `constant`, with the basis of piecewise linear functions.

    Example:

    >>> from mf_zoo.layers import measures
    >>> found = measures.linear(measures.Measure(np.array([1.0, 1.0]), []), 4)
    >>> found.mixing.tolist()
    [[1.0, 0.0], [0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]
    """
    ends = np.cumsum(measure.steps)
    middles = (np.arange(count) + 0.5) * (ends[-1] / count)
    nodes = ends - measure.steps / 2
    columns = [np.interp(middles, nodes, unit) for unit in np.eye(len(nodes))]
    return Resampling(np.full(count, ends[-1] / count), np.stack(columns, axis=1))


def merge(measure: Measure, count: int) -> Resampling:
    """Neighbours whose weights are nearest are merged, pair by pair, into their average.

    The average counts each as long as its step, and its step is their sum; the next pair is that of
    least `dt_i dt_j / (dt_i + dt_j) |theta_i - theta_j|^2`, over kernels, each measured by its mean
    square in the stage. It undoes `split` exactly, and nearly so after some training. The steps
    that a particle's weights stand for add up to its own.

    Source: Ward, *Hierarchical Grouping to Optimize an Objective Function*, Journal of the American
    Statistical Association, 1963 (the criterion; its use on blocks is ours).

    Example:

    >>> from mf_zoo.layers import measures
    >>> kernels = np.array([[[1.0]], [[5.0]], [[5.0]]])
    >>> measures.merge(measures.Measure(np.ones(3), [kernels]), 2).mixing.tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]
    """
    _check_fewer("merge", measure, count)
    kernels = [w for w in measure.weights if w.ndim > 2 and w.dtype.kind not in "iub"]
    kernels = kernels or [w for w in measure.weights if w.dtype.kind not in "iub"]
    flat = []
    for kernel in kernels:
        rows = kernel.astype("float64").reshape(len(kernel), -1)
        flat.append(rows / max(np.sqrt(np.mean(rows**2) * rows.shape[1]), 1e-30))
    points = np.concatenate(flat, axis=1)
    steps, mixing = list(measure.steps), list(np.eye(len(points)))

    def cost(i: int) -> float:
        a, b = steps[i], steps[i + 1]
        distance = np.sum(((mixing[i] - mixing[i + 1]) @ points) ** 2)
        return a * b / (a + b) * distance if a + b else 0.0

    while len(steps) > count:
        i = min(range(len(steps) - 1), key=cost)
        a, b = steps[i], steps[i + 1]
        share = a / (a + b) if a + b else 0.5
        steps[i : i + 2] = [a + b]
        mixing[i : i + 2] = [share * mixing[i] + (1 - share) * mixing[i + 1]]
    return Resampling(np.array(steps), np.array(mixing))


def merge_updates(measure: Measure, count: int) -> Resampling:
    """Neighbours that do nearly the same to images are merged into the one with the longer step.

    If block `i` takes over the step of its neighbour `j`, the output changes by about
    `dt_j (f_i - f_j)`, where `f` are the residual functions at the states where the blocks stand.
    The next pair is that where this is least. No weights are averaged, so what channels mean does
    not matter.

    Args:
        measure: With `updates`.
        count: Number of new particles.

    Example:

    >>> from mf_zoo.layers import measures
    >>> updates = np.array([[1.0], [3.0], [3.5]])
    >>> found = measures.merge_updates(measures.Measure(np.array([1.0, 1.0, 2.0]), [], updates), 2)
    >>> found.steps.tolist(), found.mixing.argmax(axis=1).tolist()
    ([1.0, 3.0], [0, 2])
    """
    _check_fewer("merge_updates", measure, count)
    if measure.updates is None:
        raise ValueError(
            'The rule "merge_updates" compares what blocks do to images. Received: images=None'
        )
    updates = measure.updates.astype("float64").reshape(len(measure.steps), -1)
    steps, kept = list(measure.steps), list(range(len(updates)))

    def cost(i: int) -> float:
        distance = np.sum((updates[kept[i]] - updates[kept[i + 1]]) ** 2)
        return min(steps[i], steps[i + 1]) ** 2 * distance

    while len(steps) > count:
        i = min(range(len(steps) - 1), key=cost)
        longer = i if steps[i] >= steps[i + 1] else i + 1
        kept[i : i + 2] = [kept[longer]]
        steps[i : i + 2] = [steps[i] + steps[i + 1]]
    return Resampling(np.array(steps), np.eye(len(updates))[kept])


RULES: dict[str, Rule] = {
    rule.__name__: rule for rule in (split, constant, linear, merge, merge_updates)
}


def get(rule: "str | Rule") -> Rule:
    """Finds a rule by its name.

    Args:
        rule: A name of `RULES`, or a callable that makes a `Resampling` of a `Measure` and a
            number of particles.

    Returns:
        The rule.

    Raises:
        ValueError: For anything else.
    """
    if isinstance(rule, str) and rule in RULES:
        return RULES[rule]
    if callable(rule):
        return rule
    raise ValueError(
        f"`rule` must be one of {', '.join(RULES)}, or a callable of a Measure and a number of "
        f"particles. Received: rule={rule!r}"
    )


def measure_of(stage: MeanFieldStage, updates: np.ndarray | None = None) -> Measure:
    """The measure of a stage that has been built.

    Args:
        stage: The stage.
        updates: As in `Measure`.

    Returns:
        The `Measure`, copied to NumPy.
    """
    blocks = stage.blocks()
    steps = np.array([block.step for block in blocks], "float64")
    weights = [np.stack(parts) for parts in zip(*(b.weights for b in blocks), strict=True)]
    return Measure(steps, weights, updates)


def transfer(
    source: MeanFieldStage,
    target: MeanFieldStage,
    rule: "str | Rule",
    updates: np.ndarray | None = None,
) -> Resampling:
    """Gives a stage the measure of another one, which may have another number of particles.

    Where the times of the target are learned they are set so that its steps are the new ones, in
    proportion to its horizon, if its quadrature rule can give such steps. The rest of a step goes
    into the variables that the block names in `output_scale_variables`. Equal stages become equal
    to the bit.

    Args:
        source: The stage to take from.
        target: The stage to fill, whose blocks are of the same make.
        rule: See `get`. With equal numbers of particles no rule is needed, and none is asked.
        updates: As in `Measure`.

    Returns:
        What became of the particles, in the order of depth of both stages.

    Raises:
        ValueError: If the rule cannot, or a step is to change in a block that names no variables.
    """
    count = target.num_particles
    if source.num_particles == count:
        if _equal_settings(source, target):
            for old, new in zip(source.weights, target.weights, strict=True):
                new.assign(ops.convert_to_numpy(old))
            steps = np.array([block.step for block in source.blocks()], "float64")
            return Resampling(steps, np.eye(count))
        measure = measure_of(source)
        found = Resampling(measure.steps, np.eye(count))
    else:
        measure = measure_of(source, updates)
        found = get(rule)(measure, count)
    if target.train_times:
        scale = target.horizon / source.horizon
        target.times.assign(_times(target, found.steps * scale))
    # The state of a random generator is no quantity: each new block has its own already.
    own = measure_of(target).weights
    weights = [
        new if old.dtype.kind in "iub" else found.apply(old)
        for old, new in zip(measure.weights, own, strict=True)
    ]
    target.set_blocks([[weight[j] for weight in weights] for j in range(count)], found.steps)
    return found


def _equal_settings(source: MeanFieldStage, target: MeanFieldStage) -> bool:
    keys = ("quadrature", "horizon", "train_times", "reorder", "integrator")
    one, other = source.get_config(), target.get_config()
    return all(one[key] == other[key] for key in keys)


def _times(stage: MeanFieldStage, steps: np.ndarray) -> np.ndarray:
    """Times at which the rule of a stage gives steps, or nearly so."""
    ends = np.cumsum(steps)
    grid = quadrature.grid(stage.quadrature, stage.num_particles, stage.horizon)
    dtype = stage.times.dtype
    best, least = grid, np.inf
    for times in (ends, ends - steps / 2, grid):
        times = np.clip(times, 0.0, stage.horizon).astype(dtype)
        own = np.asarray(
            ops.convert_to_numpy(stage.quadrature(ops.convert_to_tensor(times), stage.horizon))
        )
        difference = np.max(np.abs(own - steps))
        if difference < least * (1 - 1e-6) and np.all((own > 0) | (steps == 0)):
            best, least = times, difference
    return best


def _check_fewer(name: str, measure: Measure, count: int) -> None:
    if count > len(measure.steps):
        raise ValueError(
            f'The rule "{name}" makes at most as many particles as there are, '
            f"{len(measure.steps)}. Received: {count} particles"
        )
