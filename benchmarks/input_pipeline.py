"""`python -m benchmarks.input_pipeline`: what the end of an epoch takes on TensorFlow.

`fit` makes a `tf.data.Dataset` of whatever it is given. If `tf.data` tunes it, as it does by
default, a thread sleeps between two tunings, for twice as long each time. The end of a pass waits
for that thread, and often does not wake it: it is told to end before the order to end is written
down (`CancellationManager::StartCancel` calls back first). Datasets of `mf_zoo.data` are not tuned.
A pass over batches that take some milliseconds each is timed with both, in turns; no network.
"""

import statistics
import sys
import time
from dataclasses import dataclass

import numpy as np

from benchmarks import harness


@dataclass(frozen=True)
class Row:
    """A row of the CSV file.

    Attributes:
        side: Tuned or not.
        batch_seconds: What the use of a batch takes.
        pass_seconds: What a pass should take, at least.
        median, maximum: What it took, in seconds.
        ratio: The median by that of the dataset that is not tuned.
    """

    side: str
    batch_seconds: float
    pass_seconds: float
    median: float
    maximum: float
    ratio: float


def one_pass(dataset: object, batch_seconds: float) -> float:
    """Seconds of a pass in which the use of each batch takes so long, the end included."""
    begin = time.perf_counter()
    iterator = iter(dataset)
    for _ in iterator:
        end = time.perf_counter() + batch_seconds
        while time.perf_counter() < end:  # busy, as a training step is
            pass
    del iterator
    return time.perf_counter() - begin


def measure(rounds: int, batches: int, batch_seconds: float) -> list[Row]:
    """Times passes over both datasets in turns."""
    import tensorflow as tf

    from mf_zoo.data.batching import Batches
    from mf_zoo.data.batching import batches as make_batches

    images, labels = np.zeros((batches, 32, 32, 3), "uint8"), np.zeros(batches, "int64")
    source = Batches(images, labels, 1)
    tuned = tf.data.Dataset.from_generator(
        lambda: (source.batch(0, index) for index in range(batches)),
        output_signature=source.signature(),
    ).prefetch(tf.data.AUTOTUNE)  # as Keras does
    sides = {"tuned": tuned, "not tuned": make_batches(images, labels, 1, backend="tf")}
    found: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side, dataset in sides.items():
            harness.say(f"round {number + 1} of {rounds}, {side}")
            found[side].append(one_pass(dataset, batch_seconds))
    base = statistics.median(found["not tuned"])
    return [
        Row(
            side=side,
            batch_seconds=batch_seconds,
            pass_seconds=round(batches * batch_seconds, 3),
            median=round(statistics.median(seconds), 3),
            maximum=round(max(seconds), 3),
            ratio=round(statistics.median(seconds) / base, 3),
        )
        for side, seconds in found.items()
    ]


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = harness.parser("What the end of an epoch takes on TensorFlow.", 10, 200)
    parser.add_argument("--milliseconds", type=float, default=30.0, help="of the use of a batch")
    options = parser.parse_args(arguments)
    rows = measure(options.rounds, options.steps, options.milliseconds / 1000)
    for row in rows:
        print(row)
    output = options.output or harness.RESULTS / "input_pipeline.csv"
    harness.write_csv(output, rows, harness.circumstances(1, 1))
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
