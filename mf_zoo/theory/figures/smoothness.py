"""Are blocks smooth in depth? Left: mean distance of the kernels of neighbours in depth (dots) and
of all pairs (bars). Right: cosine similarity of what neighbours add to one state. A ring marks
stages where fewer than 5 % of all depth orders bring neighbours as near."""

import textwrap
from typing import TYPE_CHECKING, Any

from mf_zoo.depth import refine
from mf_zoo.theory.regularity import smoothness
from mf_zoo.theory.segments import cut

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mf_zoo.theory.figures.inputs import Inputs

IMAGES = 32  # on which updates are compared
REFINED = (9, 8, 8)  # particles, of a network of depth 56
_SHOWN = ("kernels", "updates")


def draw(figure: "Figure", inputs: "Inputs") -> list[dict[str, Any]]:
    """Draws the picture.

    Args:
        figure: An empty figure.
        inputs: Images and trained networks.

    Returns:
        The numbers it shows, a row for each network, stage and quantity.
    """
    networks = dict(inputs.networks)
    for label, model in inputs.networks.items():
        counts = [stage.num_particles for stage in cut(model).stages]
        if len(counts) == 3 and max(counts) < 4:
            # Copies of blocks: smooth by construction, at the moment it is grown.
            networks[f"{label}, refined to 56"] = refine(model, REFINED)
            break
    rows = []
    for label, model in networks.items():
        parts = cut(model)
        state = parts.pieces[0](inputs.images[:IMAGES].astype("float32"), training=False)
        for piece, stage in zip(parts.pieces[1:], parts.stages, strict=True):
            for record in smoothness(stage, state):
                row = {"network": label, **vars(record)}
                rows += [row] * (record.what in _SHOWN)
            state = piece(stage(state, training=False), training=False)
    figure.set_size_inches(max(10, 2.2 + 2.2 * len(networks)), 4.6)
    left, right = figure.subplots(1, 2)
    for axes, what in zip((left, right), _SHOWN, strict=True):
        _draw_quantity(axes, [row for row in rows if row["what"] == what], what)
        labels = [textwrap.fill(label, 14) for label in networks]
        axes.set_xticks(range(len(networks)), labels, fontsize=8)
        axes.set_xlim(-0.6, len(networks) - 0.4)
    left.axhline(2**0.5, color="gray", linestyle=":", label="independent blocks")
    left.set_ylim(bottom=-0.05)
    left.set_ylabel("distance of the kernels, relative")
    right.axhline(0, color="gray", linestyle=":")
    right.set_ylabel("cosine similarity of the updates of neighbours")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    return rows


def _draw_quantity(axes: Any, rows: list[dict[str, Any]], what: str) -> None:
    labels = list(dict.fromkeys(row["network"] for row in rows))
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    for number, stage in enumerate(stages):
        chosen = [row for row in rows if row["stage"] == stage]
        x = [labels.index(row["network"]) + 0.18 * (number - 1) for row in chosen]
        color = f"C{number}"
        value = "distance" if what == "kernels" else "cosine"
        axes.plot(x, [row[value] for row in chosen], "o", color=color, label=stage)
        if what == "kernels":
            pairs = [row["pairs"] for row in chosen]
            axes.plot(x, pairs, "_", color=color, markersize=12, markeredgewidth=2)
        near = [k for k, row in enumerate(chosen) if row["p_value"] < 0.05]
        axes.plot(
            [x[k] for k in near],
            [chosen[k][value] for k in near],
            "o",
            color="black",
            fillstyle="none",
            markersize=11,
        )
    if what == "kernels":
        axes.plot([], [], "_", color="gray", markersize=12, markeredgewidth=2, label="all pairs")
    axes.plot([], [], "o", color="black", fillstyle="none", markersize=9, label="p < 0.05")
