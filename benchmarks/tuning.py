"""`python -m benchmarks.tuning --data-dir D`: what a search finds against the default settings.

`mf_zoo.tuning.tune` searches a few values of the recipe `quick` on a subset of the training images,
with some of them held out. Then the recipe that it found and the default one are trained on the
subset, held-out images included, for the same number of epochs and from the same seeds, none of
which the search has seen, and measured on test images, which the search has not seen either.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import harness

SEARCH = {
    "learning_rate": (0.02, 0.5),
    "batch_size": [16, 32, 64, 128],
    "momentum": [0.8, 0.9, 0.95],
    "weight_decay": (1e-4, 5e-3),
    "time_learning_rate_multiplier": (0.1, 10.0),
    "padding": [0, 2, 4],
}


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = argparse.ArgumentParser(description="A search against the default settings.")
    parser.add_argument("--data-dir", type=Path, required=True, metavar="D")
    parser.add_argument("--model", default="MFResNet20")
    parser.add_argument("--tuner", default="random")
    parser.add_argument("--limit", type=harness.positive, default=4000, help="training images")
    parser.add_argument("--holdout", type=harness.positive, default=1000, help="of them, to choose")
    parser.add_argument("--epochs", type=harness.positive, default=4)
    parser.add_argument("--max-trials", type=harness.positive, default=10)
    parser.add_argument("--seeds", type=harness.positive, default=3, help="runs of each recipe")
    parser.add_argument("--threads", type=harness.positive, metavar="N")
    parser.add_argument("--output", type=Path, metavar="FILE", help="the CSV file")
    options = parser.parse_args(arguments)

    harness.limit_threads(options.threads)
    from mf_zoo.training import RunSettings, get_recipe, train
    from mf_zoo.training.recipes import load_recipe
    from mf_zoo.tuning import SearchSettings, tune

    rows: list[dict[str, Any]] = []
    default = get_recipe("quick", epochs=options.epochs)
    with tempfile.TemporaryDirectory() as scratch:
        search = SearchSettings(
            options.model,
            tuner=options.tuner,
            max_trials=options.max_trials,
            holdout=options.holdout,
            limit=options.limit,
            recipe=default,
            search=SEARCH,
        )
        found = tune(search, Path(scratch) / "search", data_dir=options.data_dir)
        recipes = {"default": default, "found": load_recipe(Path(scratch) / "search" / "best.toml")}
        for seed in range(1, options.seeds + 1):  # the search had seed 0
            for name, recipe in recipes.items():
                settings = RunSettings(
                    options.model,
                    recipe=recipe,
                    seed=seed,
                    limit=options.limit,
                    eval_every=options.epochs,
                )
                folder = Path(scratch) / f"{name}-{seed}"
                result = train(settings, folder, data_dir=options.data_dir, verbose=0)
                row = {"settings": name, "seed": seed, "test_error": f"{result['test_error']:.2f}"}
                row |= {key: getattr(recipe, key) for key in SEARCH}
                row |= {"train_seconds": result["train_seconds"], "trials": found["trials"]}
                print(row, flush=True)
                rows.append(row)
    _report(options, rows)
    return 0


def _report(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    from mf_zoo import files

    shared = harness.circumstances(0, options.threads)
    del shared["batch"]
    shared |= {"model": options.model, "tuner": options.tuner, "epochs": options.epochs}
    shared |= {"images": options.limit, "test_images": options.limit}
    output = options.output or harness.RESULTS / f"tuning-{shared['backend']}.csv"
    files.write_rows(output, [{**shared, **row} for row in rows], [*shared, *rows[0]])
    for name in ("default", "found"):
        errors = [float(row["test_error"]) for row in rows if row["settings"] == name]
        spread = f" (standard deviation {statistics.stdev(errors):.2f})" if len(errors) > 1 else ""
        print(f"{name:8} test error {statistics.mean(errors):.2f} %{spread}, {len(errors)} seeds")
    print(f"written to {output}")


if __name__ == "__main__":
    sys.exit(main())
