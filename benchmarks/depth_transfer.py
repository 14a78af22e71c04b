"""`python -m benchmarks.depth_transfer --data-dir D`: does the best learning rate carry over depth?

At a fixed horizon `T` the gradient of a particle is of size `T / n`, so a learning rate means less
the deeper the network is; with mean-field scaling (gradients times `n / T`) it should mean the same
at every depth. Networks of several depths are trained with several constant learning rates, with
and without the scaling, on the same batches of a small subset of CIFAR-10, for a few steps, and the
mean training loss of the last epoch is compared: the best rate of each depth is what matters.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness

RATES = (0.01, 0.03, 0.1, 0.3, 1.0)


def best_rates(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, bool], float]:
    """The learning rate of least loss for each model with and without scaling.

    Args:
        rows: Rows with `model`, `mean_field_scaling`, `learning_rate` and `loss`; a loss that is
            no number is none.
    """
    best: dict[tuple[str, bool], tuple[float, float]] = {}
    for row in rows:
        key, loss = (row["model"], row["mean_field_scaling"]), float(row["loss"])
        if math.isfinite(loss) and loss < best.get(key, (math.inf, 0.0))[0]:
            best[key] = (loss, row["learning_rate"])
    return {key: rate for key, (_, rate) in best.items()}


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = argparse.ArgumentParser(description="The best learning rate at several depths.")
    parser.add_argument("--data-dir", type=Path, required=True, metavar="D")
    parser.add_argument("--depths", type=harness.positive, nargs="+", default=[20, 56, 110])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--horizon", type=float, default=2.0)
    parser.add_argument("--limit", type=harness.positive, default=512, help="training images")
    parser.add_argument("--batch", type=harness.positive, default=32)
    parser.add_argument("--epochs", type=harness.positive, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=harness.positive, metavar="N")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the CSV file; and a .png")
    options = parser.parse_args(arguments)

    harness.limit_threads(options.threads)
    import keras
    import keras_tuner

    from mf_zoo import data
    from mf_zoo.training import get_recipe, runs
    from mf_zoo.tuning import MeanFieldHyperModel

    images, labels = data.load("cifar10", f"train[:{options.limit}]", data_dir=options.data_dir)
    held_out = data.load("cifar10", "train[-500:]", data_dir=options.data_dir)
    # The step schedule is constant over the first half of its epochs.
    recipe = get_recipe(
        "paper",
        epochs=2 * options.epochs,
        batch_size=options.batch,
        horizon=options.horizon,
    )
    shared = harness.circumstances(options.batch, options.threads)
    output = options.output or harness.RESULTS / f"depth_transfer-{shared['backend']}.csv"
    shared |= {"horizon": options.horizon, "images": options.limit, "epochs": options.epochs}
    rows: list[dict[str, Any]] = []
    for depth in options.depths:
        hypermodel = MeanFieldHyperModel(
            f"MFResNet{depth}",
            recipe=recipe,
            search={"learning_rate": list(options.rates), "mean_field_scaling": None},
            seed=options.seed,
        )
        for scaling in (False, True):
            for rate in options.rates:
                hp = keras_tuner.HyperParameters()
                hp.Fixed("learning_rate", rate)
                hp.Fixed("mean_field_scaling", scaling)
                keras.backend.clear_session()
                model = hypermodel.build(hp)
                found = hypermodel.fit(
                    hp, model, images, labels, validation_data=held_out, epochs=options.epochs
                )
                row = {
                    "model": f"MFResNet{depth}",
                    "mean_field_scaling": scaling,
                    "learning_rate": rate,
                    "loss": f"{found['loss']:.4f}",
                    "held_out_error": f"{100 * (1 - found['val_accuracy']):.1f}",
                    "seed": options.seed,
                    "seconds": f"{found['seconds']:.1f}",
                }
                print(row, flush=True)
                rows.append(row)
                lines = [{**shared, **row} for row in rows]
                runs.write_rows(output, lines, [*shared, *row])
    for (model, scaling), rate in best_rates(rows).items():
        print(f"{model:12} {'with' if scaling else 'without'} scaling: best rate {rate:g}")
    _draw(rows, options.horizon, output.with_suffix(".png"))
    print(f"written to {output}")
    return 0


def _draw(rows: Sequence[dict[str, Any]], horizon: float, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: it needs matplotlib", file=sys.stderr)
        return
    from mf_zoo.training import runs

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    sides = figure.subplots(1, 2, sharey=True)
    best = best_rates(rows)
    for axes, scaling in zip(sides, (False, True), strict=True):
        for model in dict.fromkeys(row["model"] for row in rows):
            mine = [
                (row["learning_rate"], float(row["loss"]))
                for row in rows
                if (row["model"], row["mean_field_scaling"]) == (model, scaling)
            ]
            (line,) = axes.plot(*zip(*mine, strict=True), marker="o", label=model)
            if (model, scaling) in best:
                rate = best[model, scaling]
                axes.plot(rate, dict(mine)[rate], marker="*", markersize=14, color=line.get_color())
        axes.set(xscale="log", xlabel="learning rate", ylim=(None, 3.5))
        axes.set_title(f"{'with' if scaling else 'without'} mean-field scaling, T = {horizon:g}")
    sides[0].set_ylabel("training loss")
    sides[0].legend(fontsize=8)
    runs.write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=120))


if __name__ == "__main__":
    sys.exit(main())
