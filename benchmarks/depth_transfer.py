"""`python -m benchmarks.depth_transfer --data-dir D`: does the best learning rate carry over depth?

At a fixed horizon `T` the gradient of a particle is of size `T / n`, so a learning rate means less
the deeper the network is; with mean-field scaling (gradients times `n / T`) it should mean the same
at every depth. Networks of several depths are trained with several constant learning rates, with
and without the scaling, from several seeds, on the same batches of a small subset of CIFAR-10, for
a few steps, and the mean training loss of the last epoch is compared: the best rate of each depth,
and by what factor it differs between depths, is what matters.
"""

import argparse
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness
from mf_zoo import files

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def mean_losses(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, bool], dict[float, float]]:
    """The loss of each learning rate, for each model with and without scaling.

    Args:
        rows: Rows with `model`, `mean_field_scaling`, `learning_rate`, `seed` and `loss`.

    Returns:
        The mean over the seeds; a rate with a loss that is no number in some seed is left out.
    """
    found: dict[tuple[str, bool], dict[float, list[float]]] = {}
    for row in rows:
        losses = found.setdefault((row["model"], row["mean_field_scaling"]), {})
        losses.setdefault(row["learning_rate"], []).append(float(row["loss"]))
    return {
        key: {
            rate: statistics.fmean(values)
            for rate, values in losses.items()
            if all(map(math.isfinite, values))
        }
        for key, losses in found.items()
    }


def best_rates(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, bool], float]:
    """The learning rate of least mean loss for each model with and without scaling.

    Args:
        rows: As in `mean_losses`. A model without a finite loss is left out.
    """
    return {
        key: min(losses, key=losses.__getitem__)
        for key, losses in mean_losses(rows).items()
        if losses
    }


def factor(rows: Sequence[Mapping[str, Any]], scaling: bool) -> float:
    """By what factor the best rate differs between the models: the largest by the smallest."""
    rates = [rate for (_, scaled), rate in best_rates(rows).items() if scaled == scaling]
    return max(rates) / min(rates) if rates else math.nan


def summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines that say losses and best rates, of the mean and seed by seed, and how far they move."""
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    by_seed = [[row for row in rows if row["seed"] == seed] for seed in seeds]
    best, losses = best_rates(rows), mean_losses(rows)
    tried = sorted({row["learning_rate"] for row in rows})
    lines = []
    for scaling in (False, True):
        name = f"{'with' if scaling else 'without'} scaling"
        for (model, scaled), rate in best.items():
            if scaled == scaling:
                rates = [best_rates(some).get((model, scaling), math.nan) for some in by_seed]
                edge = ", at the edge of the grid" if rate in (tried[0], tried[-1]) else ""
                lines.append(
                    f"{model:12} {name}: best rate {rate:g} (loss "
                    f"{losses[model, scaling][rate]:.3f}){edge}; by seed "
                    + ", ".join(f"{one:g}" for one in rates)
                )
                lines.append(
                    "    loss by rate: "
                    + ", ".join(
                        f"{one:g} {loss:.3f}" for one, loss in losses[model, scaled].items()
                    )
                )
        moved = ", ".join(f"{factor(some, scaling):.3g}" for some in by_seed)
        lines.append(
            f"{name}: the best rate moves by a factor of {factor(rows, scaling):.3g} between "
            f"depths; by seed {moved}"
        )
    return lines


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file of this benchmark, as `summary` wants them."""
    return [
        {
            **row,
            "mean_field_scaling": row["mean_field_scaling"] == "True",
            "learning_rate": float(row["learning_rate"]),
        }
        for row in files.read_rows(path)
    ]


class Runs:
    """Short trainings of networks that are made and compiled once for all rates and seeds.

    Args:
        images: Training images.
        labels: Their classes.
        recipe: The recipe, but for learning rate and scaling.
    """

    def __init__(self, images: Any, labels: Any, recipe: Any):
        self.images, self.labels, self.recipe = images, labels, recipe
        self.networks: dict[tuple[str, bool], tuple[Any, list]] = {}
        self.initial: dict[tuple[str, int], list] = {}

    def loss(self, model: str, scaling: bool, rate: float, seed: int) -> float:
        """Trains from the initial weights of a seed; the mean loss of the last epoch."""
        import keras

        from mf_zoo.training import assembly
        from mf_zoo.training.callbacks import SetEpoch

        recipe = self.recipe.replace(mean_field_scaling=scaling)
        if (model, seed) not in self.initial:
            keras.utils.set_random_seed(seed)
            network = assembly.build_network(model, recipe, 10)
            self.initial = {(model, seed): network.get_weights()}
        if (model, scaling) not in self.networks:
            network = assembly.build_network(model, recipe, 10)
            assembly.compile_network(network, recipe, rate, seed)
            network.optimizer.build(network.trainable_variables)
            state = [variable.numpy() for variable in network.optimizer.variables]
            self.networks[model, scaling] = network, state
        network, state = self.networks[model, scaling]
        network.set_weights(self.initial[model, seed])
        for variable, value in zip(network.optimizer.variables, state, strict=True):
            variable.assign(value)
        network.optimizer.learning_rate = rate
        batches = assembly.make_batches(self.images, self.labels, recipe, seed, 10)
        callbacks = [SetEpoch(batches, seed), keras.callbacks.TerminateOnNaN()]
        history = network.fit(
            batches, epochs=recipe.epochs, shuffle=False, callbacks=callbacks, verbose=0
        ).history
        return history["loss"][-1]


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = argparse.ArgumentParser(description="The best learning rate at several depths.")
    parser.add_argument("--data-dir", type=Path, metavar="D")
    parser.add_argument(
        "--summary", type=Path, metavar="FILE", help="say what such a CSV file shows, and no more"
    )
    parser.add_argument("--depths", type=harness.positive, nargs="+", default=[20, 56, 110])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--horizon", type=float, default=2.0)
    parser.add_argument("--limit", type=harness.positive, default=768, help="training images")
    parser.add_argument("--batch", type=harness.positive, default=32)
    parser.add_argument("--epochs", type=harness.positive, default=2)
    parser.add_argument("--seeds", type=harness.positive, default=3, help="how many, from 0 on")
    parser.add_argument("--threads", type=harness.positive, metavar="N")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the CSV file; and a .png")
    options = parser.parse_args(arguments)
    if (options.data_dir is None) == (options.summary is None):
        parser.error("give --data-dir, or --summary alone")
    if options.summary is not None:
        print("\n".join(summary(read_rows(options.summary))))
        return 0

    harness.limit_threads(options.threads)
    from mf_zoo import data, files
    from mf_zoo.training import get_recipe

    images, labels = data.load("cifar10", f"train[:{options.limit}]", data_dir=options.data_dir)
    recipe = get_recipe(
        "paper", epochs=options.epochs, batch_size=options.batch, horizon=options.horizon
    )
    shared = harness.circumstances(options.batch, options.threads)
    output = options.output or harness.RESULTS / f"depth_transfer-{shared['backend']}.csv"
    shared |= {"horizon": options.horizon, "images": options.limit, "epochs": options.epochs}
    trainings = Runs(images, labels, recipe)
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for model in (f"MFResNet{depth}" for depth in options.depths):
            for scaling in (False, True):
                for rate in options.rates:
                    start = time.perf_counter()
                    loss = trainings.loss(model, scaling, rate, seed)
                    row = {
                        "model": model,
                        "mean_field_scaling": scaling,
                        "learning_rate": rate,
                        "seed": seed,
                        "loss": f"{loss:.4f}",
                        "seconds": f"{time.perf_counter() - start:.1f}",
                    }
                    print(row, flush=True)
                    rows.append(row)
                    lines = [{**shared, **row} for row in rows]
                    files.write_rows(output, lines, [*shared, *row])
    print("\n".join(summary(rows)))
    _draw(rows, options.horizon, output.with_suffix(".png"))
    print(f"written to {output}")
    return 0


def _draw(rows: Sequence[Mapping[str, Any]], horizon: float, path: Path) -> None:
    if (figure := harness.figure(8, 3.4)) is None:
        return
    sides = figure.subplots(1, 2, sharey=True)
    losses, best = mean_losses(rows), best_rates(rows)
    for axes, scaling in zip(sides, (False, True), strict=True):
        for number, model in enumerate(dict.fromkeys(row["model"] for row in rows)):
            color = f"C{number}"
            for seed in dict.fromkeys(row["seed"] for row in rows):
                axes.plot(
                    *zip(
                        *(
                            (row["learning_rate"], float(row["loss"]))
                            for row in rows
                            if (row["model"], row["mean_field_scaling"], row["seed"])
                            == (model, scaling, seed)
                        ),
                        strict=True,
                    ),
                    color=color,
                    alpha=0.25,
                    linewidth=1,
                )
            mine = losses[model, scaling]
            axes.plot(list(mine), list(mine.values()), marker="o", color=color, label=model)
            if (model, scaling) in best:
                rate = best[model, scaling]
                axes.plot(rate, mine[rate], marker="*", markersize=14, color=color)
        axes.set(xscale="log", xlabel="learning rate", ylim=(None, 3.5))
        axes.set_title(f"{'with' if scaling else 'without'} mean-field scaling, T = {horizon:g}")
    sides[0].set_ylabel("training loss, mean over seeds")
    sides[0].legend(fontsize=8)
    harness.save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
