"""Pictures of stages and of the history of their particles, each in axes of matplotlib."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mf_zoo.layers import MeanFieldStage
from mf_zoo.visualize import histories
from mf_zoo.visualize.histories import StageHistory
from mf_zoo.visualize.pictures import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TEXT_FROM = 0.04  # of the width of the axes: narrower bars have no room for a label


def times(
    history: Any,
    stage: str | None = None,
    ax: "Axes | None" = None,
    *,
    legend: bool = True,
    last_epoch: int | None = None,
    **kwargs: Any,
) -> "Axes":
    """Draws the particles' times over the training, a line each.

    Args:
        history: What `mf_zoo.visualize.read` reads: a run folder, a CSV file of times, a
            `RecordStages` callback, or rows.
        stage: Name of a stage, whose particles then have a colour each; `None` for all stages, a
            colour each, if there are several.
        ax: Where to draw; `None` for new axes.
        legend: Whether to add a legend.
        last_epoch: Draw the last times on to this epoch, for a history that leaves out epochs
            without a change.
        **kwargs: Arguments of `Axes.plot` for every line.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no such history or stage.
        UserError: Without matplotlib.

    Example:

    >>> rows = [{"epoch": 0, "s/0": 1.0, "s/1": 2.0}, {"epoch": 1, "s/0": 1.5, "s/1": 1.25}]
    >>> ax = mf_zoo.visualize.times(rows)
    >>> [line.get_ydata().tolist() for line in ax.get_lines()]
    [[1.0, 1.5], [2.0, 1.25]]
    """
    found = _chosen(histories.read(history), stage)
    ax, kwargs = _axes(ax), _line_arguments(kwargs)
    for k, one in enumerate(found):
        epochs, values = _until(last_epoch, one.epochs, one.times)
        colors = _colors(values.shape[1]) if len(found) == 1 else [f"C{k}"] * values.shape[1]
        for i, color in enumerate(colors):
            label = f"particle {i}" if len(found) == 1 else one.name if i == 0 else None
            there = ~np.isnan(values[:, i])
            style = {"color": color, "label": label, **kwargs}
            ax.plot(epochs[there], values[there, i], **style)
    ax.set(xlabel="epoch", ylabel="time $t$ (depth)", title=_title(found))
    if legend:
        _add_legend(ax)
    return ax


def depth_order(
    history: Any,
    stage: str | None = None,
    ax: "Axes | None" = None,
    *,
    labels: bool = True,
    last_epoch: int | None = None,
    **kwargs: Any,
) -> "Axes":
    """Draws the depth order over the training as a bump chart: who is applied when.

    A line is a particle, its height its place in the depth order, counted from 0 at the bottom,
    which is applied first. Lines cross where blocks change places: those of particles that ever do
    are thick and coloured, the others grey. Stages lie one above another, as they are applied.

    Args:
        history: What `mf_zoo.visualize.read` reads: a run folder, a CSV file of times, a
            `RecordStages` callback, or rows.
        stage: Name of a stage; `None` for all.
        ax: Where to draw; `None` for new axes.
        labels: Whether to write the particles' numbers at both ends of their lines.
        last_epoch: Draw the last order on to this epoch.
        **kwargs: Arguments of `Axes.plot` for every line.

    Returns:
        The axes. Line `i` of a stage is particle `i`; ticks name stages if there are several.

    Raises:
        ValueError: If there is no such history or stage.
        UserError: Without matplotlib.

    Example:

    >>> rows = [{"epoch": 0, "s/0": 1.0, "s/1": 2.0}, {"epoch": 1, "s/0": 1.5, "s/1": 1.25}]
    >>> ax = mf_zoo.visualize.depth_order(rows)
    >>> [line.get_ydata().tolist() for line in ax.get_lines()]
    [[0.0, 1.0], [1.0, 0.0]]
    """
    found = _chosen(histories.read(history), stage)
    ax, kwargs = _axes(ax), _line_arguments(kwargs)
    base, ticks, names = 0, [], []
    for one in found:
        epochs, ranks = _until(last_epoch, one.epochs, one.ranks)
        places = base + ranks
        n = places.shape[1]
        for i, color in enumerate(_colors(n)):
            there = ~np.isnan(places[:, i])
            x, y = epochs[there], places[there, i]
            moved = len(np.unique(y)) > 1
            style = {"color": color, "linewidth": 2.0, "zorder": 3} if moved else {}
            style = {"color": "0.6", "linewidth": 1.2, "solid_joinstyle": "round"} | style | kwargs
            (line,) = ax.plot(x, y, **style)
            if labels:
                for end, side, align in ((0, -4, "right"), (-1, 4, "left")):
                    ax.annotate(
                        str(i),
                        (x[end], y[end]),
                        (side, 0),
                        textcoords="offset points",
                        ha=align,
                        va="center",
                        fontsize="small",
                        color=line.get_color(),
                    )
        ticks.append(base + (n - 1) / 2)
        names.append(one.name)
        base += n
        if one is not found[-1]:
            across = ax.get_yaxis_transform()
            ax.hlines(base - 0.5, 0, 1, "0.85", linewidth=1, zorder=0, transform=across)
    if len(found) > 1:
        ax.set_yticks(ticks, names, rotation=90, va="center")
        ax.tick_params(axis="y", length=0)
    else:
        _count_in_integers(ax)
    span = max(one.epochs[-1] for one in found) if last_epoch is None else last_epoch
    if span:
        ax.margins(x=0.07)
    ax.set(
        xlabel="epoch",
        ylabel="place in depth order",
        title=_title(found),
        ylim=(-0.6, base - 0.4),
    )
    return ax


def measure(
    stage: MeanFieldStage,
    ax: "Axes | None" = None,
    *,
    direction: Any = None,
    labels: bool = True,
    area: float = 300.0,
    **kwargs: Any,
) -> "Axes":
    """Draws the empirical measure of a stage: its particles' times against their weights.

    A marker is a particle `(theta_i, t_i)`: its height is the time, its area the step size, and
    sideways lies a projection of `theta_i`, the trainable weights of its block as one vector (all
    weights where none is trainable).

    Args:
        stage: A stage that has been built.
        ax: Where to draw; `None` for new axes.
        direction: Vector to project on, of as many numbers as a block has weights, in the order of
            `Block.weights`, or the list of arrays itself; it is divided by its length. `None` for
            the first principal component of the stage's particles, around their mean; its sign is
            such that the outermost particle lies to the right.
        labels: Whether to write the particles' numbers beside the markers.
        area: Area in square points of the marker of a particle with the largest step.
        **kwargs: Arguments of `Axes.scatter`.

    Returns:
        The axes.

    Raises:
        ValueError: For a stage that has not been built, or a direction that does not fit.
        UserError: Without matplotlib.

    Example:

    >>> stage = MeanFieldStage(keras.layers.Dense(4), 3)
    >>> stage.build((None, 4))
    >>> ax = mf_zoo.visualize.measure(stage)
    >>> ax.collections[0].get_offsets()[:, 1].tolist()
    [1.0, 2.0, 3.0]
    """
    if not isinstance(stage, MeanFieldStage) or not stage.built:
        raise ValueError(f"`stage` must be a MeanFieldStage that has been built. Received: {stage}")
    blocks = stage.blocks()
    variables = stage.template().variables
    kept = [v.trainable for v in variables]
    if not any(kept):
        kept = ["float" in v.dtype for v in variables]
    theta = np.array(
        [
            np.concatenate([w.ravel() for w, keep in zip(block.weights, kept, strict=True) if keep])
            for block in blocks
        ],
        "float64",
    )
    if direction is None:
        x, share = _first_component(theta)
        label = "first principal component of $\\theta$"
        if share is not None:
            label += f" ({100 * share:.0f} % of the variance)"
    else:
        if not hasattr(direction, "shape"):
            direction = np.concatenate([np.ravel(part) for part in direction])
        vector = np.ravel(np.asarray(direction, "float64"))
        length = np.linalg.norm(vector)
        if vector.shape != theta.shape[1:] or not (np.isfinite(length) and length > 0):
            raise ValueError(
                f"`direction` must be a vector of {theta.shape[1]} numbers, as many as the "
                "trainable weights of a block, and not 0. "
                f"Received: shape {vector.shape} of length {length}"
            )
        x, label = theta @ (vector / length), "projection of $\\theta$"
    steps = np.array([block.step for block in blocks])
    y = np.array([block.time for block in blocks])
    ax = _axes(ax)
    style = {"s": area * np.abs(steps) / max(np.abs(steps).max(), 1e-12), "alpha": 0.6}
    colors = _colors(len(blocks))
    if "color" not in kwargs and "c" not in kwargs:
        style["color"] = [colors[block.particle] for block in blocks]
    ax.scatter(x, y, **{**style, **kwargs})
    if labels:
        for block, place in zip(blocks, zip(x, y, strict=True), strict=True):
            ax.annotate(str(block.particle), place, ha="center", va="center", fontsize="small")
    ax.margins(x=0.2)
    ax.set(
        xlabel=label,
        ylabel="time $t$ (depth)",
        title=f"{stage.name}: area of a marker is the step size",
        ylim=(-0.05 * stage.horizon, 1.08 * stage.horizon),
    )
    return ax


def swaps(
    history: Any, stage: str | None = None, ax: "Axes | None" = None, **kwargs: Any
) -> "Axes":
    """Draws how many swaps of blocks the training has made since its start.

    A swap is an exchange of neighbours in the depth order: those of an epoch are Kendall's tau
    distance of its order to that of the epoch before.

    Args:
        history: What `mf_zoo.visualize.read` reads: a run folder, a CSV file of times, a
            `RecordStages` callback, or rows; also the `history.csv` of a run, or rows with the
            columns `epoch` and `order_swaps`. Of a run folder, what the run counted itself.
        stage: Name of a stage; `None` for the sum over all.
        ax: Where to draw; `None` for new axes.
        **kwargs: Arguments of `Axes.plot`.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no such history or stage.
        UserError: Without matplotlib.

    Example:

    >>> rows = [{"epoch": 0, "s/0": 1.0, "s/1": 2.0}, {"epoch": 1, "s/0": 1.5, "s/1": 1.25}]
    >>> ax = mf_zoo.visualize.swaps(rows)
    >>> ax.get_lines()[0].get_ydata().tolist()
    [0, 1]
    """
    counted = histories.read_swaps(history) if stage is None else None
    if counted is None:
        found = _chosen(histories.read(history), stage)
        epochs = np.unique(np.concatenate([one.epochs for one in found]))
        counts = np.zeros(len(epochs), "int64")
        for one in found:
            counts[np.searchsorted(epochs, one.epochs)] += one.swaps()
        title = found[0].name if stage is not None else ""
    else:
        epochs, counts = counted
        if epochs[0] > 0:  # a run's history begins after its first epoch
            epochs, counts = np.append(epochs[0] - 1, epochs), np.append(0, counts)
        title = ""
    ax = _axes(ax)
    ax.plot(epochs, np.cumsum(counts), **kwargs)
    ax.set(xlabel="epoch", ylabel="swaps since the start", title=title)
    _count_in_integers(ax)
    return ax


def step_sizes(
    source: Any,
    stage: str | None = None,
    ax: "Axes | None" = None,
    *,
    epoch: int | None = None,
    quadrature: Any = None,
    horizon: float | None = None,
    label: str | None = "{particle}\n{step:.2f}",
    height: float = 0.0,
    legend: bool = True,
    **kwargs: Any,
) -> "Axes":
    """Draws step sizes: as bars along `[0, T]` in depth order, or as lines over the training.

    Bars lie end to end from 0, each as wide as its particle's step; a black stroke is a particle's
    time. With the backward rule a bar ends at its particle's time, with the midpoint rule it is the
    cell around it.

    Args:
        source: A `MeanFieldStage` that has been built, or a list of them, for bars; or what
            `mf_zoo.visualize.read` reads: for lines, or with `epoch` for bars.
        stage: Of a history: the name of a stage; `None` for all. Lines of several stages have a
            colour for each stage; bars of several lie one above another, the last one on top.
        ax: Where to draw; `None` for new axes.
        epoch: Of a history: draw bars, of the steps after this epoch; -1 for the last one.
        quadrature: Rule of the steps, as `MeanFieldStage` takes it, for a history that does not say
            (see `mf_zoo.visualize.read`).
        horizon: Length `T` of the time interval, likewise; `None` for each stage's number of
            particles.
        label: Text of a bar, with the fields `{particle}`, `{step}` and `{time}`; `None` for none.
            A bar too narrow for a text has none.
        height: Where the (first) row of bars lies; a row is 1 high.
        legend: Whether lines get a legend.
        **kwargs: Arguments of `Axes.barh` for every bar, or of `Axes.plot` for every line.

    Returns:
        The axes.

    Raises:
        ValueError: If there is no such history, stage or epoch, or no rule is known.
        UserError: Without matplotlib.

    Example:

    >>> stage = MeanFieldStage(keras.layers.Dense(4), 3, initial_times=[1.0, 0.5, 3.0])
    >>> stage.build((None, 4))
    >>> ax = mf_zoo.visualize.step_sizes(stage)
    >>> [float(bar.get_width()) for bar in ax.patches]
    [0.5, 0.5, 2.0]
    """
    given = _built(source)
    if given is not None:
        rows = [_row_of_stage(one) for one in given]
        return _draw_bars(_axes(ax), rows, label, height, kwargs)
    found = _chosen(histories.read(source, quadrature, horizon), stage)
    if any(one.steps is None for one in found):
        raise ValueError(
            "`quadrature` must be given for a history that does not say by which rule steps are "
            f"made from times. Received: quadrature={quadrature!r}"
        )
    if epoch is not None:
        rows = [_row_of_history(one, epoch) for one in found]
        return _draw_bars(_axes(ax), rows, label, height, kwargs)
    ax, kwargs = _axes(ax), _line_arguments(kwargs)
    for k, one in enumerate(found):
        n = one.steps.shape[1]
        colors = _colors(n) if len(found) == 1 else [f"C{k}"] * n
        for i, color in enumerate(colors):
            name = f"particle {i}" if len(found) == 1 else one.name if i == 0 else None
            there = ~np.isnan(one.steps[:, i])
            style = {"color": color, "label": name, **kwargs}
            ax.plot(one.epochs[there], one.steps[there, i], **style)
    ax.set(xlabel="epoch", ylabel="step size $dt$", title=_title(found))
    if legend:
        _add_legend(ax)
    return ax


# A row of bars: name, horizon, and particle, step and time in depth order.
_Row = tuple[str, float, Sequence[int], Sequence[float], Sequence[float]]


def _row_of_stage(stage: MeanFieldStage) -> _Row:
    blocks = stage.blocks()
    columns = ([getattr(b, key) for b in blocks] for key in ("particle", "step", "time"))
    return stage.name, stage.horizon, *columns


def _row_of_history(stage: StageHistory, epoch: int) -> _Row:
    places = np.flatnonzero(stage.epochs == (stage.epochs[-1] if epoch == -1 else epoch))
    if not len(places):
        raise ValueError(
            f"`epoch` must be one of the history, {stage.epochs[0]} to {stage.epochs[-1]}, or -1. "
            f"Received: epoch={epoch}"
        )
    k = places[0]
    order = [int(i) for i in np.argsort(stage.ranks[k]) if not np.isnan(stage.ranks[k, i])]
    return stage.name, stage.horizon, order, stage.steps[k, order], stage.times[k, order]


def _draw_bars(
    ax: "Axes", rows: Sequence[_Row], label: str | None, height: float, kwargs: dict[str, Any]
) -> "Axes":
    widest = max(max(horizon, float(np.sum(steps))) for _, horizon, _, steps, _ in rows)
    for k, (_, _, particles, steps, places) in enumerate(rows):
        y, start = height + k, 0.0
        colors = _colors(1 + max(particles))
        for i, step, time in zip(particles, steps, places, strict=True):
            style = {"height": 0.5, "color": colors[i], "alpha": 0.75, **kwargs}
            ax.barh(y, step, left=start, **style)
            if label is not None and step > _TEXT_FROM * widest:
                text = label.format(particle=i, step=step, time=time)
                ax.text(start + step / 2, y, text, ha="center", va="center", fontsize="small")
            ax.plot([time, time], [y - 0.32, y + 0.32], color="black", linewidth=1.5)
            start += step
    ax.set_yticks(height + np.arange(len(rows)), [name for name, *_ in rows])
    ax.set(
        xlabel="time $t$ (depth)",
        xlim=(0, 1.01 * widest),
        ylim=(height - 0.5, height + len(rows) - 0.5),
    )
    return ax


def _built(source: Any) -> list[MeanFieldStage] | None:
    """The stages that were given; `None` for a history."""
    given = [source] if isinstance(source, MeanFieldStage) else source
    if not isinstance(given, (list, tuple)) or not given:
        return None
    if not all(isinstance(one, MeanFieldStage) for one in given):
        return None
    for one in given:
        if not one.built:
            raise ValueError(f"`source` must be a stage that has been built. Received: {one}")
    return list(given)


def _axes(ax: "Axes | None") -> "Axes":
    return new_figure().subplots() if ax is None else ax


def _add_legend(ax: "Axes") -> None:
    many = len(ax.get_legend_handles_labels()[1]) > 4
    beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if many else {}
    ax.legend(fontsize="small", **beside)


def _count_in_integers(ax: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    ax.yaxis.set_major_locator(MaxNLocator("auto", integer=True))


def _line_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a line by their long names: `linewidth` for `lw`."""
    from matplotlib.cbook import normalize_kwargs
    from matplotlib.lines import Line2D

    return normalize_kwargs(kwargs, Line2D)


def _until(last_epoch: int | None, epochs: Any, values: Any) -> tuple[Any, Any]:
    """Epochs and their values, the last values drawn on to a later epoch."""
    if last_epoch is None or last_epoch <= epochs[-1]:
        return epochs, values
    return np.append(epochs, last_epoch), np.vstack([values, values[-1:]])


def _chosen(found: dict[str, StageHistory], stage: str | None) -> list[StageHistory]:
    if stage is None:
        return list(found.values())
    if stage not in found:
        raise ValueError(f"`stage` must be None or one of {list(found)}. Received: stage={stage!r}")
    return [found[stage]]


def _title(found: Sequence[StageHistory]) -> str:
    return found[0].name if len(found) == 1 else ""


def _colors(count: int) -> list[Any]:
    """A colour for each particle: those of matplotlib's cycle, of a colour map where they end."""
    if count <= 10:
        return [f"C{i}" for i in range(count)]
    from matplotlib import colormaps

    return list(colormaps["turbo"](np.linspace(0.05, 0.95, count)))


def _first_component(theta: np.ndarray) -> tuple[np.ndarray, float | None]:
    """Scores of the rows on their first principal component, and its share of the variance."""
    centred = theta - theta.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    scores = u[:, 0] * s[0]
    total = np.square(s).sum()
    # Of several that are equally far out but for rounding, the first.
    outermost = np.argmax(np.abs(scores) >= (1 - 1e-6) * np.abs(scores).max())
    if scores[outermost] < 0:
        scores = -scores
    return scores, float(s[0] ** 2 / total) if total > 0 else None
