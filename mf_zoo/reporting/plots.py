"""The interactive figures of a report, by Plotly. Names of runs and classes are escaped in them."""

import html
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mf_zoo.errors import UserError

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from mf_zoo.reporting.predictions import Predictions
    from mf_zoo.reporting.run import Run
    from mf_zoo.visualize import StageHistory

# Okabe and Ito's, which people with any colour vision tell apart; without the yellow and black.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#666666")
_INK = "#1b1f24"
_ON_COLORS = ("white", "white", "white", _INK, _INK, _INK, "white")  # of text on them
MOST_FRAMES = 500
_LABELLED = 20  # of so many classes at most, a confusion matrix has room for numbers


def graph_objects() -> Any:
    """The module `plotly.graph_objects`.

    Raises:
        UserError: Without plotly.
    """
    try:
        import plotly.graph_objects
    except ImportError as error:
        raise UserError(
            "Reports of runs need plotly: pip install 'mf_zoo[plot]'. Received: no plotly"
        ) from error
    return plotly.graph_objects


def new_figure(height: int, **layout: Any) -> "Figure":
    """An empty figure as wide as the page.

    Args:
        height: In pixels.
        **layout: Of Plotly's layout.

    Raises:
        UserError: Without plotly.
    """
    given = {
        "template": "plotly_white",
        "height": height,
        "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": _INK},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "dragmode": False,  # a finger on a figure scrolls the page
        **layout,
    }
    return graph_objects().Figure(layout=given)


def color(k: int) -> str:
    """The colour of run or particle `k`."""
    return COLORS[k % len(COLORS)]


def curves(runs: Sequence["Run"]) -> dict[str, "Figure"]:
    """Error, loss and learning rate over the epochs, by title; a colour a run."""
    parts: dict[str, Any] = {
        "Error": ("error in %", {"evaluated": _test_error, "training": _train_error}),
        "Loss": ("loss in nats", {"evaluated": "test_loss", "training": "loss"}),
        "Learning rate": ("learning rate", {"": "learning_rate"}),
    }
    figures = {}
    for title, (label, columns) in parts.items():
        epochs = (int(row["epoch"]) for run in runs for row in run.history)
        figure = new_figure(340, xaxis=_whole({"title": "epoch"}, epochs), yaxis_title=label)
        for (k, run), (kind, column) in itertools.product(enumerate(runs), columns.items()):
            found = column if callable(column) else _column(column)
            points = [(int(row["epoch"]), found(row)) for row in run.history]
            points = [(epoch, value) for epoch, value in points if value is not None]
            names = [run.name] * (len(runs) > 1) + [kind] * bool(kind)
            figure.add_scatter(
                x=[epoch for epoch, _ in points],
                y=[value for _, value in points],
                name=html.escape(", ".join(names)),
                mode="lines+markers" if len(points) < 40 else "lines",
                line={"color": color(k), "dash": "dot" if kind == "training" else "solid"},
                marker={"size": 5},
                showlegend=bool(names),
            )
        figures[title] = figure
    return figures


def _column(name: str) -> Any:
    return lambda row: float(row[name]) if row[name] else None


_test_error = _column("test_error")


def _train_error(row: Mapping[str, str]) -> float:
    return 100 * (1 - float(row["accuracy"]))


def _stacked(stages: Iterable["StageHistory"], label: str, height: int) -> "Figure":
    """A figure with axes for each stage, from input to output."""
    from plotly.subplots import make_subplots

    stages = list(stages)
    axes = make_subplots(rows=len(stages), cols=1, shared_xaxes=True, vertical_spacing=0.04)
    # Above there is room for Plotly's buttons.
    margin = {"l": 56, "r": 12, "t": 32, "b": 48}
    layout = _without_template(axes.layout)
    figure = new_figure(height * len(stages) + 80, margin=margin, **layout)
    for k, stage in enumerate(stages, 1):
        figure.layout[f"yaxis{k}"].title.text = f"{html.escape(stage.name)}: {label}"
        figure.layout[f"yaxis{k}"].title.font = {"size": 12}
    figure.update_xaxes(_whole({}, (epoch for stage in stages for epoch in stage.epochs)))
    figure.layout[f"xaxis{len(stages)}"].title.text = "epoch"
    figure.layout.showlegend = False
    return figure


def _without_template(layout: Any) -> dict[str, Any]:
    return {key: value for key, value in layout.to_plotly_json().items() if key != "template"}


def _whole(axis: dict[str, Any], epochs: Iterable[int]) -> dict[str, Any]:
    """An axis of epochs, without ticks between two of a few."""
    return {**axis, "dtick": 1} if len(set(epochs)) <= 12 else axis


def _axes(k: int) -> dict[str, str]:
    return {"xaxis": f"x{k}" if k > 1 else "x", "yaxis": f"y{k}" if k > 1 else "y"}


def depth_order(stages: Sequence["StageHistory"]) -> tuple["Figure", list[str]]:
    """The particles' times over the epochs, with a frame for each epoch that moves their heads.

    Args:
        stages: The histories of the stages, from input to output.

    Returns:
        The figure, and for each of its frames a sentence on its epoch. Of more than 500 epochs as
        many have a frame, the last one too.
    """
    figure = _stacked(stages, "time", 230)
    swaps = {stage.name: stage.swaps() for stage in stages}
    epochs = sorted({int(epoch) for stage in stages for epoch in stage.epochs})
    every = -(-len(epochs) // MOST_FRAMES)
    epochs = [epoch for k, epoch in enumerate(epochs) if (len(epochs) - 1 - k) % every == 0]
    for k, stage in enumerate(stages, 1):
        figure.layout[f"yaxis{k}"].range = [0, 1.06 * stage.horizon]
        for i in range(stage.times.shape[1]):
            figure.add_scatter(
                x=stage.epochs.tolist(),
                y=stage.times[:, i].tolist(),
                mode="lines",
                line={"color": color(i), "width": 1.5},
                opacity=0.5,
                name=f"particle {i}",
                hoverinfo="skip",
                **_axes(k),
            )
    lines = len(figure.data)
    heads = list(range(lines, lines + len(stages)))
    for k, stage in enumerate(stages, 1):
        figure.add_trace({**_heads(stage, swaps[stage.name], epochs[-1]), **_axes(k)})
    figure.frames = [
        {
            "name": str(epoch),
            "data": [_heads(stage, swaps[stage.name], epoch) for stage in stages],
            "traces": heads,
        }
        for epoch in epochs
    ]
    room = 0.06 * max(epochs[-1] - epochs[0], 1)
    figure.update_xaxes(range=[epochs[0] - room, epochs[-1] + room])
    return figure, [_said(stages, swaps, epoch) for epoch in epochs]


def _index(stage: "StageHistory", epoch: int) -> int | None:
    found = np.flatnonzero(stage.epochs == epoch)
    return int(found[0]) if len(found) else None


def _heads(stage: "StageHistory", swaps: np.ndarray, epoch: int) -> dict[str, Any]:
    """Where the particles of a stage are in an epoch; those that changed places have a ring."""
    k = _index(stage, epoch)
    n = stage.times.shape[1]
    times = [float("nan")] * n if k is None else stage.times[k].tolist()
    places = np.full(n, np.nan) if k is None else stage.ranks[k]
    moved = np.zeros(n, bool)
    if k:
        moved = (places != stage.ranks[k - 1]) & ~np.isnan(places) & (swaps[k] > 0)
    size = 18 if n <= 12 else 13
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [epoch] * n,
        "y": times,
        "text": [str(i) for i in range(n)],
        "textfont": {
            "color": [_ON_COLORS[i % len(_ON_COLORS)] for i in range(n)],
            "size": size - 7,
        },
        "customdata": [None if np.isnan(place) else int(place) for place in places],
        "hovertemplate": "particle %{text}, time %{y:.3f}, place %{customdata} in the order"
        "<extra></extra>",
        "marker": {
            "size": size,
            "opacity": 1,
            "color": [color(i) for i in range(n)],
            "line": {
                "color": [_INK if ring else "white" for ring in moved],
                "width": [3 if ring else 1 for ring in moved],
            },
        },
    }


def _said(stages: Sequence["StageHistory"], swaps: Mapping[str, np.ndarray], epoch: int) -> str:
    """A sentence on the depth order in an epoch."""
    orders, total = [], 0
    for stage in stages:
        k = _index(stage, epoch)
        if k is None:
            continue
        ranks = stage.ranks[k]
        order = [str(i) for i in np.argsort(ranks) if not np.isnan(ranks[i])]
        orders.append(f"{stage.name}: {' '.join(order)}")
        total += int(swaps[stage.name][k])
    return f"Epoch {epoch}, {_count(total, 'swap')}. Applied in the order {'; '.join(orders)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def step_sizes(stages: Sequence["StageHistory"]) -> "Figure | None":
    """The particles' step sizes over the epochs; `None` where it is not known by which rule."""
    known = [stage for stage in stages if stage.steps is not None]
    if not known:
        return None
    figure = _stacked(known, "step", 190)
    for k, stage in enumerate(known, 1):
        for i in range(stage.steps.shape[1]):
            figure.add_scatter(
                x=stage.epochs.tolist(),
                y=stage.steps[:, i].tolist(),
                mode="lines",
                line={"color": color(i)},
                name=f"particle {i}",
                **_axes(k),
            )
    return figure


def confusion(predictions: "Predictions") -> "Figure":
    """The confusion matrix: right classes down, predictions across."""
    counts = predictions.confusion()
    names = [html.escape(name) for name in predictions.class_names]
    n = len(names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few = n <= _LABELLED
    figure = new_figure(
        460 if few else 720,
        margin={"l": 12, "r": 12, "t": 12, "b": 12},
        xaxis={"title": "predicted", "tickangle": -60, "automargin": True, "showgrid": False},
        yaxis={"title": "true", "autorange": "reversed", "automargin": True, "showgrid": False},
    )
    # Mistakes are few: their shares have most of the colours.
    scale = [[0, "#ffffff"], [0.02, "#e3eef6"], [0.1, "#9cc4e0"], [0.4, "#3f8cbf"], [1, "#0b4f7d"]]
    figure.add_heatmap(
        z=shares.tolist(),
        x=names,
        y=names,
        zmin=0,
        zmax=1,
        colorscale=scale,
        showscale=False,
        xgap=int(few),
        ygap=int(few),
        text=counts.tolist(),
        texttemplate="%{text}" if few else "",
        hovertemplate="%{y} taken for %{x}: %{text} images, %{z:.1%}<extra></extra>",
    )
    return figure


def reliability(predictions: "Predictions") -> "Figure":
    """Accuracy against confidence, with the diagonal of a calibrated network."""
    from mf_zoo.training.evaluation import calibration_bins

    counts, confidence, right = calibration_bins(predictions.confidence, predictions.correct)
    there = counts > 0
    edges = (np.arange(len(counts)) + 0.5) / len(counts)
    figure = new_figure(
        400,
        xaxis={"title": "confidence in %", "range": [0, 100]},
        yaxis={"title": "right answers in %", "range": [0, 102]},
    )
    figure.add_bar(
        x=(100 * edges[there]).tolist(),
        y=(100 * right[there]).tolist(),
        width=95 / len(counts),
        marker={"color": color(4), "line": {"width": 0}},
        customdata=np.stack([counts[there], 100 * confidence[there]], axis=1).tolist(),
        hovertemplate="%{customdata[0]} images, mean confidence %{customdata[1]:.1f} %, right "
        "%{y:.1f} %<extra></extra>",
        name="right answers of images with that confidence",
    )
    figure.add_scatter(
        x=[0, 100],
        y=[0, 100],
        mode="lines",
        line={"color": _INK, "dash": "dash", "width": 1.5},
        name="calibrated",
        hoverinfo="skip",
    )
    return figure
