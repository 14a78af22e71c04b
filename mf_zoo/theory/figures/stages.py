"""The stages of the shipped mean-field networks, and how they came to be."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mf_zoo import visualize, weights
from mf_zoo.layers import stages

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mf_zoo.theory.figures.inputs import Inputs

MODEL = "MFResNet20"
DATASETS = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}


def draw(figure: "Figure", inputs: "Inputs") -> list[dict[str, Any]]:
    """Stages of MFResNet20: times and depth order over the training, step sizes, the measure.

    From the shipped weights and their recorded histories; no images are needed.

    Args:
        figure: An empty figure.
        inputs: Not used.

    Returns:
        A row for each dataset, epoch and particle: `time`, `rank`, `step` and, after the last
        epoch, `projection`, the particle's place in the picture of the measure (stage 1).
    """
    from mf_zoo import applications

    figure.set_size_inches(16, 7.6)
    rows = []
    grid = figure.subplots(2, 4, width_ratios=(1, 1, 1.25, 1))
    for panels, (dataset, title) in zip(grid, DATASETS.items(), strict=True):
        over_time, order, steps, cloud = panels
        record = weights.get(MODEL, dataset)
        history = weights.registry.FOLDER / f"{record.file.partition('.')[0]}.times.csv"
        model = applications.get(MODEL)(weights=dataset)
        found = visualize.read(history)

        visualize.times(history, ax=over_time, legend=False)
        over_time.legend(loc="lower center", ncols=3, fontsize="small")
        over_time.set(title=f"{MODEL}, {title}: times", ylim=(0, None))
        visualize.depth_order(history, ax=order)
        swaps = sum(int(stage.swaps().sum()) for stage in found.values())
        order.set(title=f"depth order (lowest first): {swaps} swaps")
        visualize.step_sizes(stages(model), ax=steps)
        steps.set_title("step sizes after training (a stroke is a time)")
        first = stages(model)[0]
        visualize.measure(first, ax=cloud)
        cloud.set_title(f"empirical measure of {first.name}")
        cloud.xaxis.label.set_size("small")
        points = cloud.collections[0].get_offsets()[:, 0]
        places = {block.particle: float(x) for block, x in zip(first.blocks(), points, strict=True)}
        rows += [
            {
                "dataset": dataset,
                "epoch": int(epoch),
                "stage": stage.name,
                "particle": i,
                "time": stage.times[k, i],
                "rank": int(stage.ranks[k, i]),
                "step": stage.steps[k, i],
                "projection": places[i]
                if stage.name == first.name and k == len(stage.epochs) - 1
                else "",
            }
            for stage in found.values()
            for k, epoch in enumerate(stage.epochs)
            for i in np.flatnonzero(~np.isnan(stage.times[k])).tolist()
        ]
    return rows
