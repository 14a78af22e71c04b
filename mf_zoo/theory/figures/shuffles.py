"""Error of trained networks with their blocks in another order, by distance from the trained order.

After Veit et al., arXiv 1605.06431, figure 5 (b).
"""

from typing import Any

import numpy as np

SAMPLES = 12  # orders for each distance
DISTANCES = 12  # distances, at most


def draw(figure: Any, inputs: Any) -> list[dict[str, Any]]:
    """Draws the picture.

    Args:
        figure: An empty `matplotlib.figure.Figure`.
        inputs: The `Inputs` of the command.

    Returns:
        A row for every order drawn.
    """
    from mf_zoo import layers, theory
    from mf_zoo.layers.orders import largest_distance

    figure.set_size_inches(11, 4.6)
    whole, alone = figure.subplots(1, 2)
    markers = "osD^vPX"
    rows: list[dict[str, Any]] = []
    for i, (name, model) in enumerate(inputs.networks.items()):
        stages = layers.stages(model)
        for j, stage in enumerate([None, *(one.name for one in stages)]):
            sizes = [one.num_particles for one in stages if stage in (None, one.name)]
            largest = largest_distance(sizes)
            distances = sorted({round(k) for k in np.linspace(0, largest, DISTANCES)})
            found = theory.shuffle(
                model, inputs.images, inputs.labels, distances, samples=SAMPLES, stage=stage
            )
            rows += [_row(name, stage, one) for one in found]
            means = [np.mean([one.error for one in found if one.distance == k]) for k in distances]
            axes, colour = (whole, f"C{i}") if stage is None else (alone, f"C{i}")
            if stage is None:
                # Draws of the same order lie on one another.
                shift = 0.12 * (i - (len(inputs.networks) - 1) / 2)
                at = [one.distance + shift for one in found]
                axes.plot(at, [one.error for one in found], ".", color=colour, alpha=0.4)
                axes.plot(distances, means, "o-", color=colour, label=name)
            elif largest:
                style = ("-", "--", ":", "-.")[(j - 1) % 4]
                marker = markers[(j - 1) % len(markers)]
                axes.plot(distances, means, marker + style, color=colour, label=f"{name}, {stage}")
    for axes in (whole, alone):
        axes.set(xlabel="distance in swaps of neighbours", ylabel="test error in %", ylim=(0, 100))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(loc="lower right", frameon=False, fontsize="small")
    whole.set_title("all stages shuffled (dots: orders, line: mean)", fontsize="medium")
    alone.set_title("one stage shuffled (mean)", fontsize="medium")
    return rows


def _row(name: str, stage: str | None, found: Any) -> dict[str, Any]:
    return {
        "network": name,
        "shuffled": stage or "all",
        "distance": found.distance,
        "orders": " | ".join(" ".join(map(str, order)) for order in found.orders),
        "error": round(found.error, 4),
        "loss": round(found.loss, 4),
        "intact_error": round(found.intact_error, 4),
        "intact_loss": round(found.intact_loss, 4),
    }
