"""Error of trained networks without one of their blocks, and without several.

Also with the statistics of BatchNormalization estimated anew for each missing block.

After Veit et al., arXiv 1605.06431, figures 3 and 5 (a).
"""

from typing import Any

import numpy as np

SAMPLES = 3  # sets of blocks for each number of them
COUNTS = 8  # numbers of blocks, at most
STATISTICS = 500  # images to estimate them on, at most


def draw(figure: Any, inputs: Any) -> list[dict[str, Any]]:
    """Draws the picture.

    Args:
        figure: An empty `matplotlib.figure.Figure`.
        inputs: The `Inputs` of the command.

    Returns:
        A row for every lesion.
    """
    from mf_zoo import theory

    figure.set_size_inches(11, 4.6)
    alone, several = figure.subplots(1, 2, width_ratios=(3, 2))
    rows: list[dict[str, Any]] = []
    labels: list[str] = []
    width = 0.8 / len(inputs.networks)
    for i, (name, model) in enumerate(inputs.networks.items()):
        single = theory.lesion(model, inputs.images, inputs.labels)
        most = len(single)
        counts = sorted({round(k) for k in np.linspace(2, most, min(COUNTS, most))} - {1})
        sets = (
            theory.lesion(model, inputs.images, inputs.labels, count=counts, samples=SAMPLES)
            if counts
            else []
        )
        anew = theory.lesion(
            *(model, inputs.images, inputs.labels), recalibrate_on=inputs.train_images[:STATISTICS]
        )
        rows += [_row(name, "trained", found) for found in (*single, *sets)]
        rows += [_row(name, "estimated", found) for found in anew]
        places = [f"{one.blocks[0].stage}\n{one.blocks[0].position + 1}" for one in single]
        labels = max(labels, places, key=len)
        intact = single[0].intact_error
        colour = f"C{i}"
        at = np.arange(most) + (i - (len(inputs.networks) - 1) / 2) * width
        alone.bar(at, [one.error for one in single], width, color=colour, label=name)
        alone.plot(
            *(at, [one.error for one in anew], "_"),
            color="black",
            markersize=14,
            markeredgewidth=2,
            label="statistics estimated anew" if i == len(inputs.networks) - 1 else None,
        )
        alone.axhline(intact, color=colour, linestyle="--", linewidth=1)
        errors = {0: [intact], 1: [one.error for one in single]}
        for found in sets:
            errors.setdefault(len(found.blocks), []).append(found.error)
        removed = sorted(errors)
        several.plot(removed, [np.mean(errors[k]) for k in removed], "o-", color=colour, label=name)
        several.fill_between(
            removed,
            [min(errors[k]) for k in removed],
            [max(errors[k]) for k in removed],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    alone.set_xticks(range(len(labels)), labels, fontsize="small")
    alone.set(xlabel="missing block: stage and depth", ylabel="test error in %", ylim=(0, 100))
    alone.set_title("one block missing (dashed: none)", fontsize="medium")
    several.set(xlabel="number of missing blocks", ylabel="test error in %", ylim=(0, 100))
    several.set_title("random sets (mean, range)", fontsize="medium")
    several.xaxis.get_major_locator().set_params(integer=True)
    alone.legend(loc="upper right", frameon=False, fontsize="small")
    several.legend(loc="lower right", frameon=False)
    return rows


def _row(name: str, statistics: str, found: Any) -> dict[str, Any]:
    blocks = found.blocks
    return {
        "network": name,
        "statistics": statistics,
        "removed": len(blocks),
        "blocks": " ".join(f"{one.stage}:{one.position}" for one in blocks),
        "particles": " ".join(str(one.particle) for one in blocks),
        "times": " ".join(f"{one.time:.4f}" for one in blocks),
        "steps": " ".join(f"{one.step:.4f}" for one in blocks),
        "error": round(found.error, 4),
        "loss": round(found.loss, 4),
        "intact_error": round(found.intact_error, 4),
        "intact_loss": round(found.intact_loss, 4),
    }
