"""`python -m benchmarks.single_image`: what Keras adds to a network called with one image.

Sides: `MFResNet20` folded by `mf_zoo.deploy.fold`, and the same network in Keras's own layers.
Calls, from a NumPy array to a NumPy array:

- `predict`: `model.predict` of 64 images at batch 1, by image;
- `predict_on_batch`: `model.predict_on_batch` of one image;
- *compiled*: the model as a function of the backend, without `predict`: `tf.function`, `jax.jit`,
  or on PyTorch `torch.inference_mode()`, which compiles nothing.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import harness
from benchmarks.deployment import FOLDED, PLAIN, networks
from mf_zoo import files, markdown

CALLS = ("predict", "predict_on_batch", "compiled")
IMAGES = 64


def compiled(model: Any) -> Callable[[Any], Any]:
    """A model as a function of the active backend from a NumPy array to a NumPy array."""
    import keras
    import numpy as np

    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        function = tf.function(lambda images: model(images, training=False))
        return lambda images: function(tf.constant(images)).numpy()
    if keras.config.backend() == "jax":
        import jax

        function = jax.jit(lambda images: model(images, training=False))
        return lambda images: np.asarray(function(images))
    import torch

    def eager(images: Any) -> Any:
        with torch.inference_mode():
            return keras.ops.convert_to_numpy(model(images, training=False))

    return eager


def measure(depth: int, options: Any) -> list[harness.Comparison]:
    """Measures all calls of both networks, which must give the same scores.

    Args:
        depth: Depth of the network.
        options: `rounds`, `steps` and `clock`.
    """
    import numpy as np

    models = {name: model for name, model in networks(depth).items() if name in (FOLDED, PLAIN)}
    images = harness.images_and_labels(IMAGES)[0].astype("float32")
    one = images[:1]
    functions = {name: compiled(model) for name, model in models.items()}
    expected = models[PLAIN].predict_on_batch(one)
    for function in (*functions.values(), models[FOLDED].predict_on_batch):
        np.testing.assert_allclose(function(one), expected, atol=1e-4 * np.abs(expected).max())
    calls: dict[str, dict[str, Callable[[], Any]]] = {
        "predict": {
            name: lambda model=model: model.predict(images, batch_size=1, verbose=0)
            for name, model in models.items()
        },
        "predict_on_batch": {
            name: lambda model=model: model.predict_on_batch(one) for name, model in models.items()
        },
        "compiled": {
            name: lambda function=function: function(one) for name, function in functions.items()
        },
    }
    rows = []
    for call, sides in calls.items():
        harness.say(call)
        count = IMAGES if call == "predict" else 1
        harness.interleave(sides, 1, 1)
        steps = options.steps * (1 if call == "predict" else 20)
        taken = harness.interleave(sides, options.rounds, steps, harness.CLOCKS[options.clock])
        seconds = {name: [value / count for value in values] for name, values in taken.items()}
        rows.append(
            harness.compare(seconds, FOLDED, PLAIN, depth=depth, measure=call, policy="float32")
        )
    return rows


def readme_table(results: Path = harness.RESULTS) -> str:
    """The committed results as a Markdown table: milliseconds of one image.

    Args:
        results: Folder of the `single_image-*.csv`.
    """
    lines = []
    notes = []
    for path in sorted(results.glob("single_image-*.csv")):
        rows = files.read_rows(path)
        for row in rows:
            plain, folded = (float(row[f"{s}_seconds"]) for s in ("baseline", "side"))
            lines.append(
                [
                    row["backend"],
                    row["measure"],
                    f"{1000 * plain:.1f}",
                    f"{1000 * folded:.1f}",
                    f"{1 / float(row['ratio']):.2f}",
                ]
            )
        notes.append("- {backend}: {machine}; {date}; {versions}.".format(**rows[0]))
    header = ["backend", "call", "plain Keras, ms", "folded, ms", "times as fast"]
    return "\n".join([markdown.table(header, lines), "", *notes])


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = harness.parser("One image: predict against what it calls.", 5, 1, batch=None)
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
