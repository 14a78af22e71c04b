"""Draws `docs/method.png` from the history of the shipped `MFResNet20`.

python docs/make_pictures.py
"""

from pathlib import Path

from mf_zoo import visualize
from mf_zoo.visualize.pictures import new_figure, save

HERE = Path(__file__).resolve().parent
HISTORY = HERE.parent / "weights" / "mf_resnet20-cifar10.times.csv"
TEXT = "$f(\\cdot,\\theta_{particle})$\n$dt={step:.2f}$"


def main() -> None:
    stages = visualize.read(HISTORY)
    first = next(iter(stages))
    figure = new_figure(figsize=(11, 5.6))
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    axes = above.subplots()
    rows = {-1: "after training", 0: "before training:\nthe plain ResNet"}
    for height, epoch in enumerate(rows):
        visualize.step_sizes(HISTORY, first, axes, epoch=epoch, label=TEXT, height=height)
    axes.set_yticks(range(len(rows)), rows.values())
    axes.tick_params(axis="y", length=0)
    axes.set(
        title=f"{first} of MFResNet20: a block is a particle $(\\theta_i, t_i)$; "
        "blocks act in the order of their times, $X \\leftarrow "
        "\\mathrm{relu}(X + dt_i\\, f(X, \\theta_i))$",
        ylim=(-0.5, 1.5),
    )
    axes.title.set_fontsize(10)
    for panel, (name, stage) in zip(below.subplots(1, len(stages)), stages.items(), strict=True):
        visualize.times(HISTORY, name, panel, legend=False)
        panel.set(title=f"times in {name}", ylabel="", ylim=(0, stage.horizon * 1.02))
        panel.legend(fontsize=8, loc="lower right")
    save(figure, HERE / "method.png", dpi=90)


if __name__ == "__main__":
    main()
