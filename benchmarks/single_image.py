"""`python -m benchmarks.single_image`: what Keras adds to a network called with one image.

The networks are MFResNet20 folded by `mf_zoo.deploy.fold`, and the same network in Keras's own
layers. Calls, from a NumPy array of one image to a NumPy array of scores:

- `predict`: `model.predict` of 32 images at batch 1, by image;
- `predict_on_batch`: `model.predict_on_batch` of each image;
- `inference`: the function that `mf_zoo.deploy.inference` makes.

All are compared with `predict` of plain Keras.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.deployment import FOLDED, PLAIN, TARGET, networks
from mf_zoo import files, markdown

BASELINE = f"{PLAIN}, predict"
INFERENCE = "inference"
IMAGES = 32


def measure(depth: int, options: Any) -> list[harness.Comparison]:
    """Measures all calls, which must give the same scores.

    Args:
        depth: Depth of the network.
        options: `rounds`, `steps` and `clock`.
    """
    import numpy as np

    from mf_zoo import deploy

    found = networks(depth)
    images = harness.images_and_labels(IMAGES)[0].astype("float32")
    parts = [images[i : i + 1] for i in range(len(images))]
    one: dict[str, Callable[[Any], Any]] = {
        f"{name}, predict_on_batch": found[name].predict_on_batch for name in (PLAIN, FOLDED)
    }
    one[INFERENCE] = deploy.inference(found["mean-field"])
    expected = found[PLAIN].predict_on_batch(parts[0])
    for run in one.values():
        tolerance = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(run(parts[0]), expected, rtol=0, atol=tolerance)
    sides: dict[str, Callable[[], Any]] = {
        f"{name}, predict": lambda model=found[name]: model.predict(images, batch_size=1, verbose=0)
        for name in (PLAIN, FOLDED)
    }
    sides |= {name: lambda run=run: [run(part) for part in parts] for name, run in one.items()}
    harness.interleave(sides, 1, 1)
    taken = harness.interleave(sides, options.rounds, options.steps, harness.CLOCKS[options.clock])
    seconds = {name: [value / IMAGES for value in values] for name, values in taken.items()}
    return [
        harness.compare(
            seconds,
            name,
            BASELINE,
            depth=depth,
            measure="one image",
            policy="float32",
            target=TARGET if name == INFERENCE else None,
        )
        for name in sides
    ]


def readme_table(results: Path = harness.RESULTS) -> str:
    """The committed results as a Markdown table: milliseconds of one image.

    Args:
        results: Folder of the `single_image-*.csv`.
    """
    header: list[str] = []
    lines = []
    notes = []
    for path in sorted(results.glob("single_image-*.csv")):
        rows = files.read_rows(path)
        header = header or ["backend", *(row["side"] for row in rows), "times as fast"]
        milliseconds = [f"{1000 * float(row['side_seconds']):.1f}" for row in rows]
        lines.append([rows[0]["backend"], *milliseconds, f"{1 / float(rows[-1]['ratio']):.1f}"])
        notes.append("- {backend}: {machine}; {date}; {versions}.".format(**rows[0]))
    return "\n".join([markdown.table(header, lines), "", *notes])


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = harness.parser("One image: predict against calls without it.", 5, 1, batch=None)
    harness.add_clock(parser)
    options = parser.parse_args(arguments)
    harness.limit_threads(options.threads)
    import keras

    keras.utils.set_random_seed(0)
    shared = harness.circumstances(1, options.threads)
    output = options.output or harness.RESULTS / f"single_image-{shared['backend']}.csv"
    harness.report(measure(20, options), shared, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
