"""Gradients of residual networks beside those of their shallow ensembles, at the same cotangent.
Top: ratio of the norms for each block of trained networks, and for each stage along a short
training. Bottom: the theory's bounds (lines) beside what is measured (dots), for small stages of
growing horizon."""

from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from mf_zoo import devices
from mf_zoo.layers import BasicBlock, MeanFieldStage
from mf_zoo.optimizers import MeanFieldSGD
from mf_zoo.theory.bounds import compare_bounds
from mf_zoo.theory.gap import gradient_gap
from mf_zoo.theory.gap_log import GradientGapLog
from mf_zoo.theory.residual_unit import ResidualUnit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mf_zoo.theory.figures.inputs import Inputs

IMAGES = 200  # on which gradients are averaged
TRAIN_IMAGES = 2000  # at most
STEPS, EVERY, BATCH = 80, 10, 50
HORIZONS = tuple(2.0**k for k in range(-6, 3))
_KEYS = (
    *("panel", "network", "stage", "depth", "particle", "step", "horizon"),
    *("ratio", "cosine", "times_ratio", "loss", "ensemble_loss"),
    *("costate_least", "costate_most", "costate_lower", "costate_upper"),
    *("exponential_lower", "exponential_upper", "ratio_off_one", "ratio_off_one_bound"),
)


def draw(figure: "Figure", inputs: "Inputs") -> list[dict[str, Any]]:
    """Draws the picture.

    Args:
        figure: An empty figure.
        inputs: Images and trained networks.

    Returns:
        The numbers it shows, a row for each dot.
    """
    figure.set_size_inches(11, 8)
    (blocks, training), (costate, ratio) = figure.subplots(2, 2)
    rows = [*_draw_blocks(blocks, inputs), *_draw_training(training, inputs)]
    rows += _draw_bounds(costate, ratio)
    return [{key: row.get(key) for key in _KEYS} for row in rows]


def _draw_blocks(axes: Any, inputs: "Inputs") -> list[dict[str, Any]]:
    rows, longest = [], []
    for number, (label, model) in enumerate(inputs.networks.items()):
        gap = gradient_gap(model, inputs.images[:IMAGES], inputs.labels[:IMAGES])
        found = gap.rows()
        losses = {"loss": gap.loss, "ensemble_loss": gap.ensemble_loss}
        rows += [{"panel": "blocks", "network": label, **row, **losses} for row in found]
        ticks = [f"{row['stage']}\n{row['depth'] + 1}" for row in found]
        longest = max(longest, ticks, key=len)
        text = f"{label} (loss {gap.loss:.2f}, ensemble's {gap.ensemble_loss:.2f})"
        axes.plot([row["ratio"] for row in found], "os^Dv"[number % 5] + "-", label=text)
    axes.axhline(1, color="gray", linestyle=":")
    _log_axis(axes)
    axes.set_xticks(range(len(longest)), longest if len(longest) < 12 else [""] * len(longest))
    axes.set_xlabel("block, in depth order")
    axes.set_ylabel("gradient norm, ResNet / ensemble")
    axes.set_title("Blocks of trained networks")
    axes.legend(fontsize=8)
    return rows


def _log_axis(axes: Any) -> None:
    """Ratios from about 0.1 to 10, written as decimal numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def small_network(particles: int = 4, filters: int = 8, seed: int = 0) -> keras.Model:
    """A narrow mean-field network of one stage, with random weights.

    Args:
        particles: Number of blocks.
        filters: Number of channels.
        seed: Seed of the weights.

    Returns:
        A model for images of 32 x 32, not compiled.
    """
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Rescaling(1 / 64, offset=-2)(inputs)
    x = keras.layers.Conv2D(filters, 4, strides=4, activation="relu")(x)
    x = MeanFieldStage(BasicBlock(filters), particles, activation="relu", name="stage")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10, activation="softmax")(x))


def _draw_training(axes: Any, inputs: "Inputs") -> list[dict[str, Any]]:
    model = small_network()
    images, labels = inputs.train_images[:TRAIN_IMAGES], inputs.train_labels[:TRAIN_IMAGES]
    log = GradientGapLog(images[:IMAGES], labels[:IMAGES], every=EVERY)
    model.compile(
        MeanFieldSGD(0.02, momentum=0.9),
        "sparse_categorical_crossentropy",
        jit_compile=devices.jit_compile(),
    )
    epochs = -(-STEPS * BATCH // len(images))
    steps = min(STEPS, len(images) // BATCH)
    model.fit(
        images.astype("float32"),
        labels,
        batch_size=BATCH,
        epochs=epochs,
        steps_per_epoch=steps,
        verbose=0,
        callbacks=[log],
    )
    steps = [row["step"] for row in log.rows]
    axes.plot(steps, [row["ratio"] for row in log.rows], "o-", label="weights")
    axes.plot(steps, [row["times_ratio"] for row in log.rows], "s-", label="times")
    axes.axhline(1, color="gray", linestyle=":")
    _log_axis(axes)
    axes.set_xlabel(f"training step ({BATCH} images each)")
    axes.set_ylabel("gradient norm, ResNet / ensemble")
    axes.set_title("A training: 4 blocks of 8 channels, one stage")
    losses = axes.twinx()
    for key, style, label in (("loss", "-", "loss"), ("ensemble_loss", "--", "ensemble's loss")):
        losses.plot(steps, [row[key] for row in log.rows], "k" + style, alpha=0.5, label=label)
    losses.set_ylabel("loss (cross-entropy, nats)")
    losses.set_ylim(bottom=0)
    handles = [axes.get_legend_handles_labels(), losses.get_legend_handles_labels()]
    axes.legend(
        *(a + b for a, b in zip(*handles, strict=True)), fontsize=8, ncols=2, loc="upper right"
    )
    axes.set_ylim(top=2.5 * axes.get_ylim()[1])  # room for the legend
    losses.set_ylim(top=1.4 * losses.get_ylim()[1])
    return [{"panel": "training", "network": "small", **row} for row in log.rows]


def _draw_bounds(costate: Any, ratio: Any, particles: int = 8) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 4))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    p = rng.normal(size=(16, 4))
    weights = [[rng.normal(size=(4, 2)) / 2, rng.normal(size=(2, 4)) / 2] for _ in range(particles)]
    rows = []
    for horizon in HORIZONS:
        stage = MeanFieldStage(ResidualUnit(2), particles, horizon=horizon)
        stage.build((None, 4))
        stage.set_blocks(weights)
        table = compare_bounds(stage, x, p)
        rows.append(
            {
                "panel": "bounds",
                "horizon": horizon,
                **{key: value for key, value in table[0].items() if key in _KEYS[-8:]},
                "exponential_lower": float(np.exp(-table[0]["exponent"])),
                "exponential_upper": float(np.exp(table[0]["exponent"])),
                "ratio_off_one": max(abs(row["ratio"] - 1) for row in table[1:]),
                "ratio_off_one_bound": max(row["ratio_upper"] - 1 for row in table[1:]),
                "ratio": None,
            }
        )

    def column(key: str) -> list[float]:
        return [row[key] for row in rows]

    costate.fill_between(
        HORIZONS, column("costate_least"), column("costate_most"), color="C0", alpha=0.3
    )
    costate.plot(HORIZONS, column("costate_least"), "o", color="C0", label="measured: least, most")
    costate.plot(HORIZONS, column("costate_most"), "o", color="C0")
    costate.plot(HORIZONS, column("costate_upper"), "C1-", label="product of $1 \\pm dt\\, L$")
    lower = np.where(np.array(column("costate_lower")) > 0, column("costate_lower"), np.nan)
    costate.plot(HORIZONS, lower, "C1-")
    costate.plot(HORIZONS, column("exponential_upper"), "C2--", label="$\\exp(\\pm \\int L\\, dt)$")
    costate.plot(HORIZONS, column("exponential_lower"), "C2--")
    costate.set_ylabel("|p(0)| / |p(T)|")
    costate.set_title(f"Costate: {particles} blocks tanh(x A) B")
    ratio.plot(HORIZONS, column("ratio_off_one"), "o", color="C0", label="measured, worst block")
    ratio.plot(HORIZONS, column("ratio_off_one_bound"), "C1-", label="bound, worst block")
    ratio.set_ylabel("distance of the ratio of gradients from 1")
    ratio.set_title("Ratio of gradients: the same blocks")
    for axes in (costate, ratio):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("horizon T (units of time)")
        axes.legend(fontsize=8)
    return rows
