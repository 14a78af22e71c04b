"""Is every local minimum global? Final training loss of small networks against the number of their
blocks (dots: seeds, lines: medians; random targets on a sphere, and real images), and from bad
places to start from."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mf_zoo.theory import landscape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mf_zoo.theory.figures.inputs import Inputs

PARTICLES = (1, 2, 4, 8, 16, 32)
NOISY_PARTICLES = (2, 8, 32)
SEEDS = 5
STEPS = 800
START_PARTICLES = 8
FLOOR = 1e-10  # smaller losses are drawn there


def draw(figure: "Figure", inputs: "Inputs") -> list[dict[str, Any]]:
    """Draws the picture.

    Args:
        figure: An empty figure.
        inputs: Images; networks are trained from random weights.

    Returns:
        The numbers it shows, a row for each network that was trained.
    """
    problems = {
        "sphere": [landscape.sphere(seed=seed) for seed in range(SEEDS)],
        "images": [
            landscape.image_problem(inputs.train_images, inputs.train_labels, seed=seed)
            for seed in range(SEEDS)
        ],
    }
    both = [problem for found in problems.values() for problem in found]
    quiet = {k: v for k, v in landscape.NETWORKS.items() if not v.noise_temperature}
    noisy = {k: v for k, v in landscape.NETWORKS.items() if v.noise_temperature}
    runs = landscape.minima(both, PARTICLES, networks=quiet, steps=STEPS)
    runs += landscape.minima(both, NOISY_PARTICLES, networks=noisy, steps=STEPS)
    mean_field = {k: v for k, v in landscape.NETWORKS.items() if v.mean_field}
    starts = landscape.minima(
        problems["sphere"],
        [START_PARTICLES],
        networks=mean_field,
        starts=landscape.STARTS,
        steps=STEPS,
        activation="relu",
    )
    figure.set_size_inches(15, 4.8)
    axes = figure.subplots(1, 3, width_ratios=(1, 1, 1.15))
    titles = {
        "sphere": "Random targets on a sphere",
        "images": "Images of cats and dogs",
    }
    for part, (name, title) in zip(axes, titles.items(), strict=False):
        _draw_problem(part, [run for run in runs if run.problem == name])
        samples, dimension = problems[name][0].x.shape
        part.set_title(f"{title}:\n{samples} samples in {dimension} dimensions")
    axes[0].legend(fontsize=8)
    _draw_starts(axes[2], starts)
    shown = [("particles", run) for run in runs] + [("starts", run) for run in starts]
    return [{"panel": panel, **vars(run)} for panel, run in shown]


def _draw_problem(axes: Any, runs: list[landscape.Run]) -> None:
    names = list(dict.fromkeys(run.network for run in runs))
    for number, name in enumerate(names):
        chosen = [run for run in runs if run.network == name]
        counts = sorted({run.particles for run in chosen})
        # Beside one another, for dots of different networks not to cover each other.
        shift = 2 ** (0.12 * (number - (len(names) - 1) / 2))
        places = np.array([run.particles for run in chosen]) * shift
        losses = np.maximum([run.loss for run in chosen], FLOOR)
        axes.plot(places, losses, "o", markersize=4, color=_color(name))
        medians = [np.median(losses[places == count * shift]) for count in counts]
        axes.plot(np.array(counts) * shift, medians, "-", color=_color(name), label=name)
    linear = np.median([run.linear_loss for run in runs])
    axes.axhline(linear, color="gray", linestyle=":", label="best affine function, median")
    axes.set_xscale("log", base=2)
    axes.set_xticks(PARTICLES, PARTICLES)
    axes.set_yscale("log")
    axes.set_xlabel("number of blocks (particles)")
    axes.set_ylabel(f"mean squared error after {runs[0].steps} steps")


def _color(name: str) -> str:
    return f"C{list(landscape.NETWORKS).index(name)}"


def _draw_starts(axes: Any, runs: list[landscape.Run]) -> None:
    names = list(dict.fromkeys(run.network for run in runs))
    for number, name in enumerate(names):
        chosen = [run for run in runs if run.network == name]
        places = [
            landscape.STARTS.index(run.start) + 0.2 * (number - (len(names) - 1) / 2)
            for run in chosen
        ]
        losses = np.maximum([run.loss for run in chosen], FLOOR)
        axes.plot(places, losses, "o", markersize=4, color=_color(name), label=name)
    initial = np.median([run.initial_loss for run in runs if run.start == "zero"])
    axes.axhline(initial, color="gray", linestyle="--", label="of the output 0, median")
    axes.set_yscale("log")
    axes.set_xticks(range(len(landscape.STARTS)), landscape.STARTS)
    axes.set_xlabel("initial weights")
    axes.set_ylabel("mean squared error")
    axes.set_title(f"Bad places to start from:\n{runs[0].particles} blocks of ReLUs, sphere")
    axes.legend(fontsize=8)
