"""Left and middle: error of small random networks to their limit, by depth `L` and width `M`, at
initialisation and after 10 gradient steps, and the rate `a / L + b / sqrt(L M)`, fitted in squares.
Right: how far outputs of trained networks move when every step is halved, nothing trained."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mf_zoo.theory import limits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mf_zoo.theory.figures.inputs import Inputs

DEPTHS = (4, 8, 16, 32, 64)
WIDTHS = (1, 16, 256)
STEPS = (0, 10)
REFERENCE = (256, 256)
LEARNING_RATE = 0.3
IMAGES = 16  # of which outputs are compared
DOUBLINGS = 5
_KEYS = ("picture", "series", "steps", "depth", "width", "parts", "particles", "error", "fitted")
_KEYS += ("bias", "spread", "change", "order", "a", "b", "misfit")


def draw(figure: "Figure", inputs: "Inputs") -> list[dict[str, Any]]:
    """Draws the picture.

    Args:
        figure: An empty figure.
        inputs: Images and trained networks.

    Returns:
        The numbers it shows, a row a point.
    """
    figure.set_size_inches(15, 4.4)
    first, second, third = figure.subplots(1, 3)
    records = limits.depth_error(
        DEPTHS, WIDTHS, steps=STEPS, learning_rate=LEARNING_RATE, reference=REFERENCE
    )
    rows = []
    for axes, steps in zip((first, second), STEPS, strict=True):
        rows += _draw_rate(axes, [record for record in records if record.steps == steps])
    second.sharey(first)
    first.set_ylabel("relative error of the output")
    first.set_title("at initialisation")
    second.set_title(f"after {STEPS[1]} gradient steps")
    for number, (label, model) in enumerate(inputs.networks.items()):
        rows += _draw_refinement(third, f"C{number}", label, model, inputs.images[:IMAGES])
    parts = np.array([1.0, 2 ** (DOUBLINGS - 1)])
    third.loglog(parts, 1.5 / parts, color="black", linestyle=":", label="order 1")
    third.set_xscale("log", base=2)
    third.set_xlabel("parts of each block")
    third.set_xticks(2 ** np.arange(DOUBLINGS), [str(2**k) for k in range(DOUBLINGS)])
    third.set_ylabel("relative change at half the step")
    third.set_title("trained networks, refined")
    third.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return [{key: row.get(key, "") for key in _KEYS} for row in rows]


def _draw_rate(axes: Any, records: list[limits.DepthError]) -> list[dict[str, Any]]:
    fit = limits.fit_depth_error(records)
    rows = [
        {
            "picture": "rate",
            "series": f"M = {record.width}",
            "fitted": float(fitted),
            **{
                key: getattr(record, key)
                for key in ("steps", "depth", "width", "error", "bias", "spread")
            },
            **{key: getattr(fit, key) for key in ("a", "b", "misfit")},
        }
        for record, fitted in zip(records, fit.fitted, strict=True)
    ]
    for number, width in enumerate(WIDTHS):
        chosen = [row for row in rows if row["width"] == width]
        depths = [row["depth"] for row in chosen]
        axes.loglog(
            depths, [row["error"] for row in chosen], "o", color=f"C{number}", label=f"M = {width}"
        )
        axes.loglog(depths, [row["fitted"] for row in chosen], color=f"C{number}")
    depths = np.array(DEPTHS, "float64")
    if fit.a:
        axes.loglog(
            depths,
            fit.a * (1 / depths - 1 / REFERENCE[0]),
            color="black",
            linestyle=":",
            label="the part of 1 / L",
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(DEPTHS, [str(depth) for depth in DEPTHS])
    axes.set_xlabel("depth L (particles)")
    axes.legend(title=f"a = {fit.a:.2f}, b = {fit.b:.2f}", fontsize=8, title_fontsize=9)
    return rows


def _draw_refinement(
    axes: Any, color: str, label: str, model: Any, images: np.ndarray
) -> list[dict[str, Any]]:
    found = limits.refinement_error(model, images.astype("float32"), DOUBLINGS)
    names = list(dict.fromkeys(record.name for record in found))
    for number, name in enumerate(names):
        chosen = [record for record in found if record.name == name][:-1]
        last = name == names[-1]
        axes.loglog(
            [record.parts for record in chosen],
            [record.change for record in chosen],
            linestyle="--" if last else "-",
            marker="x" if last else "osv^D"[number % 5],
            markersize=5,
            linewidth=1,
            color=color,
            label=f"{label}, {'all, scores' if last else name + ' alone'}",
        )
    return [
        {
            "picture": "refined",
            "series": f"{label}, {record.name}",
            **{key: getattr(record, key) for key in ("parts", "particles", "error")},
            **{key: getattr(record, key) for key in ("change", "order")},
        }
        for record in found
    ]
