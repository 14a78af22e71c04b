"""Costates, gradients and the gradient field along depth; states computed backwards.

Above: the norm of the costate at each state; the norm of each block's gradient; how far states are
off that are computed backwards from the output of their stage. Below: the gradient field of the
first network at the weights of each block along time, the dots at its own time. Where it is lower
a block lowers the loss more; the dots point where gradient descent on the times moves the block.
"""

from typing import Any

import keras
import numpy as np

from mf_zoo.layers import MeanFieldStage
from mf_zoo.theory import adjoint, adjoints, cut, gradient_field, reconstruct

ITERATIONS = (1, 5)


def smooth_stage() -> tuple[MeanFieldStage, np.ndarray]:
    """A stage of 20 short steps of a smooth residual function, each a contraction, and an input."""
    block = keras.layers.Dense(
        16,
        activation="tanh",
        kernel_initializer=keras.initializers.Orthogonal(gain=0.8, seed=0),
        bias_initializer=keras.initializers.RandomNormal(stddev=0.5, seed=1),
    )
    x = np.random.default_rng(0).normal(size=(200, 16)).astype("float32")
    return MeanFieldStage(block, 20, horizon=1.0, name="smooth stage"), x


def draw(figure: Any, inputs: Any) -> list[dict[str, Any]]:
    """Draws the picture.

    Args:
        figure: An empty `matplotlib.figure.Figure`.
        inputs: The `Inputs` of the command; its `images`, `labels` and `networks` are used. The
            networks must end in probabilities.

    Returns:
        A row for each number: `network`, `stage`, `quantity`, `place` in depth, `particle`, `time`
        and `value`.
    """
    figure.set_size_inches(13, 7.5)
    rows: list[dict[str, Any]] = []
    first = next(iter(inputs.networks))
    measured = {
        label: _measure(rows, label, model, inputs, with_field=label == first)
        for label, model in inputs.networks.items()
    }
    stage, x = smooth_stage()
    smooth = _reconstructions(rows, "smooth stage", stage, x)
    count = len(measured[first])
    grid = figure.add_gridspec(2, 1)
    above, below = grid[0].subgridspec(1, 3), grid[1].subgridspec(1, count)
    colours = {label: f"C{k}" for k, label in enumerate(measured)}
    _costates(figure.add_subplot(above[0]), measured, colours)
    _gradients(figure.add_subplot(above[1]), measured, colours)
    _backwards(figure.add_subplot(above[2]), measured, smooth, colours)
    axes = None
    for k, stage in enumerate(measured[first]):
        axes = figure.add_subplot(below[k], sharey=axes)
        _field(axes, stage)
        axes.set_title(f"{first}, {stage['name']}")
        if not k:
            axes.set_ylabel("gradient field (loss per unit of time)")
    return rows


def _measure(
    rows: list[dict[str, Any]], label: str, model: keras.Model, inputs: Any, with_field: bool
) -> list[dict[str, Any]]:
    """What is drawn of a network, stage by stage; its numbers go into the rows."""
    found = []
    results = adjoints(model, inputs.images, inputs.labels)
    for stage, result in zip(cut(model).stages, results, strict=True):
        blocks = stage.blocks()
        n = len(blocks)

        def add(
            quantity: str,
            value: float,
            place: int,
            i: int | str = "",
            t: float | str = "",
            stage: str = stage.name,
        ) -> None:
            _add(rows, label, stage, quantity, value, place, i, t)

        costates = [float(np.linalg.norm(part)) for part in result.costates]
        for place, value in enumerate(costates):
            add("costate norm", value, place)
        gradients = []
        for place, block in enumerate(blocks):
            parts = [part[block.particle].ravel() for part in result.weights]
            gradients.append(float(np.linalg.norm(np.concatenate(parts))))
            here = (place, block.particle, block.time)
            add("gradient norm", gradients[-1], *here)
            add("gradient of the time", float(result.times[block.particle]), *here)
            # At its own point the field is the derivative with respect to the step size.
            add("field at its own time", float(result.steps[place]), *here)
        # Between the times, before the first and after the last.
        times = [block.time for block in blocks]
        edges = np.unique([0.0, *times, stage.horizon])
        edges = edges[np.diff(edges, prepend=-1.0) > 1e-4 * stage.horizon]  # no slivers
        field = None
        if with_field:
            points = [(i, t) for i in range(n) for t in (edges[1:] + edges[:-1]) / 2]
            weights, where = [blocks[i].weights for i, _ in points], [t for _, t in points]
            x, cotangent = result.states[0], result.costates[-1]
            field = gradient_field(stage, x, cotangent, weights, where)
            for (i, t), value in zip(points, field, strict=True):
                add("field", float(value), i, blocks[i].particle, float(t))
            field = field.reshape(n, -1)
        found.append(
            {
                "name": stage.name,
                "costates": costates,
                "gradients": gradients,
                "edges": edges,
                "times": times,
                "field": field,
                "own": result.steps,
                "directions": [-float(result.times[block.particle]) for block in blocks],
                "moves": bool(stage.times.trainable),
                "errors": _reconstructions(rows, label, stage, result.states[0], result),
            }
        )
    return found


def _add(
    rows: list[dict[str, Any]],
    network: str,
    stage: str,
    quantity: str,
    value: float,
    place: int | str = "",
    particle: int | str = "",
    time: float | str = "",
) -> None:
    rows.append(
        {
            "network": network,
            "stage": stage,
            "quantity": quantity,
            "place": place,
            "particle": particle,
            "time": time,
            "value": value,
        }
    )


def _reconstructions(
    rows: list[dict[str, Any]], label: str, stage: MeanFieldStage, x: Any, result: Any = None
) -> dict[int, np.ndarray]:
    """Errors of the states, and of the gradients of the weights at those states."""
    if result is None:
        result = adjoint(stage, x, lambda y: y / len(x))
    found = {}
    for iterations in ITERATIONS:
        backwards = reconstruct(stage, x, iterations)
        found[iterations] = backwards.errors
        for place, error in enumerate(backwards.errors):
            quantity = f"error of the state, {iterations} iterations"
            _add(rows, label, stage.name, quantity, float(error), place)
        there = adjoint(stage, x, result.costates[-1], states=backwards.states)
        total = np.concatenate([part.ravel() for part in result.weights])
        wrong = np.concatenate([part.ravel() for part in there.weights]) - total
        error = float(np.linalg.norm(wrong) / np.linalg.norm(total))
        _add(rows, label, stage.name, f"error of the gradient, {iterations} iterations", error)
    return found


def _costates(axes: Any, measured: dict[str, list], colours: dict[str, str]) -> None:
    for label, stages in measured.items():
        start = 0
        for stage in stages:
            places = np.arange(start, start + len(stage["costates"]))
            name = None if start else label
            axes.plot(places, stage["costates"], "o-", color=colours[label], label=name)
            start = places[-1] + 1
    axes.set_yscale("log")
    axes.set_title("costates")
    axes.set_xlabel("state, from input to output")
    axes.set_ylabel("norm of the costate (loss per state)")
    axes.legend()


def _gradients(axes: Any, measured: dict[str, list], colours: dict[str, str]) -> None:
    width = 0.8 / len(measured)
    for k, (label, stages) in enumerate(measured.items()):
        heights = [value for stage in stages for value in stage["gradients"]]
        places = np.arange(len(heights)) + (k - (len(measured) - 1) / 2) * width
        axes.bar(places, heights, width, color=colours[label], label=label)
        names = [
            f"{number}.{place}"
            for number, stage in enumerate(stages, 1)
            for place in range(1, len(stage["gradients"]) + 1)
        ]
        if len(names) <= 12:
            axes.set_xticks(range(len(names)), names)
    axes.set_title("gradients of the blocks")
    axes.set_xlabel("stage.block, in depth order")
    axes.set_ylabel("norm of the gradient (loss per weight)")
    axes.margins(y=0.25)  # room for the legend
    axes.legend()


def _backwards(
    axes: Any, measured: dict[str, list], smooth: dict[int, np.ndarray], colours: dict[str, str]
) -> None:
    lines = [
        (label, stage["errors"], colours[label]) for label in measured for stage in measured[label]
    ]
    lines.append(("smooth stage", smooth, "black"))
    told = set()
    for label, errors, colour in lines:
        for iterations, style in zip(ITERATIONS, ("o-", "x--"), strict=True):
            values = errors[iterations][-2::-1]
            name = f"{label}, {iterations} iteration{'s' * (iterations > 1)}"
            values = np.where(np.isfinite(values), values, np.nan)
            axes.plot(
                np.arange(1, len(values) + 1),
                values,
                style,
                color=colour,
                markersize=4,
                label=None if name in told else name,
            )
            told.add(name)
    axes.set_yscale("log")
    axes.set_title("states computed backwards")
    axes.set_xlabel("blocks undone")
    axes.set_ylabel("relative error of the state")
    axes.legend(fontsize="small")


def _field(axes: Any, stage: dict[str, Any]) -> None:
    for place, values in enumerate(stage["field"]):
        colour = f"C{place % 10}"
        axes.stairs(values, stage["edges"], baseline=None, color=colour, label=f"block {place + 1}")
        marker = "o"
        if stage["moves"]:
            marker = ">" if stage["directions"][place] > 0 else "<"
        axes.plot(stage["times"][place], stage["own"][place], marker, color=colour, markersize=9)
    axes.axhline(0, color="grey", linewidth=0.5)
    if stage["moves"]:
        axes.plot([], [], "k>", label="own time, and where\ndescent moves it")
    else:
        axes.plot([], [], "ko", label="own time")
    axes.set_xlabel("time")
    axes.legend(fontsize="small")
