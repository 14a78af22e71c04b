"""Draws `docs/method.png` from the history of the shipped `MFResNet20`.

python docs/make_pictures.py
"""

import csv
from collections import defaultdict
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
HISTORY = HERE.parent / "weights" / "mf_resnet20-cifar10.times.csv"


def read_times() -> dict[str, dict[int, list[float]]]:
    """Times by stage and particle, an entry an epoch, epoch 0 first."""
    times: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    with HISTORY.open(newline="") as file:
        for row in csv.DictReader(file):
            times[row["stage"]][int(row["particle"])].append(float(row["time"]))
    return times


def draw_steps(axes, times: dict[int, float], height: float, text: str) -> None:
    """A stage as a row: each particle's block fills the step that ends at its time."""
    start = 0.0
    for i in sorted(times, key=times.get):
        axes.barh(height, times[i] - start, left=start, height=0.5, color=f"C{i}", alpha=0.75)
        label = f"$f(\\cdot,\\theta_{i})$\n$dt={times[i] - start:.2f}$"
        axes.text((start + times[i]) / 2, height, label, ha="center", va="center", fontsize=9)
        axes.plot([times[i]] * 2, [height - 0.32, height + 0.32], color="black", lw=1.5)
        start = times[i]
    axes.text(-0.05, height, text, ha="right", va="center", fontsize=9)


def main() -> None:
    stages = read_times()
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    axes = above.subplots()
    first, history = next(iter(stages.items()))
    draw_steps(
        axes, {i: t[0] for i, t in history.items()}, 1.0, "before training:\nthe plain ResNet"
    )
    draw_steps(axes, {i: t[-1] for i, t in history.items()}, 0.0, "after training")
    axes.set(
        title=f"{first} of MFResNet20: a block is a particle $(\\theta_i, t_i)$; "
        "blocks act in the order of their times, $X \\leftarrow "
        "\\mathrm{relu}(X + dt_i\\, f(X, \\theta_i))$",
        xlabel="time $t$ (depth)",
        xlim=(0, len(history)),
        ylim=(-0.5, 1.5),
        yticks=[],
    )
    axes.title.set_fontsize(10)
    for panel, (name, history) in zip(below.subplots(1, len(stages)), stages.items(), strict=True):
        for i, times in history.items():
            panel.plot(times, color=f"C{i}", label=f"particle {i}")
        panel.set(xlabel="epoch", title=f"times in {name}", ylim=(0, len(history) * 1.02))
        panel.legend(fontsize=8, loc="lower right")
    figure.savefig(HERE / "method.png", dpi=90)


if __name__ == "__main__":
    main()
