"""`python -m benchmarks.compilation`: what compiling a training step takes, and of what.

The sides of `benchmarks.train_step`, each built anew for each round. On TensorFlow `trace` is the
making of the graph by Python and `compile` its optimisation, the first step less a steady one; on
JAX `trace` is tracing and lowering and `compile` is XLA's part. `operations` counts those of the
graph with its functions, or of the lowered module. Seconds are those of the process alone.
"""

import gc
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

from benchmarks import harness, memory, train_step


@dataclass(frozen=True)
class Compilation:
    """One side at one depth: a row of the CSV file.

    Attributes:
        depth: Depth of the network.
        side: Its name in `benchmarks.train_step`.
        operations: Operations of a training step.
        trace_seconds, compile_seconds: Medians over the rounds.
    """

    depth: int
    side: str
    operations: int
    trace_seconds: float
    compile_seconds: float


def _on_tensorflow(model: Any, images: Any, labels: Any) -> tuple[int, float, float]:
    import tensorflow as tf

    model._symbolic_build(data_batch=(images[:1], labels[:1]))  # the metrics
    model.optimizer.build(model.trainable_variables)
    batch = tf.constant(images), tf.constant(labels)
    clock = time.process_time
    start = clock()
    step = tf.function(lambda *batch: model.train_step(batch)).get_concrete_function(*batch)
    traced = clock()
    step(*batch)
    first = clock()
    step(*batch)
    second = clock()
    graph = step.graph.as_graph_def()
    operations = len(graph.node) + sum(len(f.node_def) for f in graph.library.function)
    return operations, traced - start, max((first - traced) - (second - first), 0.0)


def _on_jax(model: Any, images: Any, labels: Any) -> tuple[int, float, float]:
    clock = time.process_time
    start = clock()
    lowered, _ = memory.lowered_step(model, images, labels)
    traced = clock()
    lowered.compile()
    seconds = clock() - traced
    return lowered.as_text().count(" = stablehlo."), traced - start, seconds


def measure(depth: int, batch: int, rounds: int) -> list[Compilation]:
    """Measures all sides at one depth, in turn."""
    import keras

    backend = keras.config.backend()
    if backend not in ("tensorflow", "jax"):
        raise SystemExit(f"Only TensorFlow and JAX compile. Received: KERAS_BACKEND={backend}")
    compiled = {"tensorflow": _on_tensorflow, "jax": _on_jax}[backend]
    images, labels = harness.images_and_labels(batch)
    sides = train_step.builders()
    found: dict[str, list[tuple[int, float, float]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, build in sides.items():
            harness.say(f"ResNet-{depth}, {number + 1}/{rounds}: {name}")
            keras.backend.clear_session()
            gc.collect()
            found[name].append(compiled(build(depth), images, labels))
    return [
        Compilation(
            depth,
            name,
            rows[0][0],
            statistics.median(row[1] for row in rows),
            statistics.median(row[2] for row in rows),
        )
        for name, rows in found.items()
    ]


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = harness.parser("What compiling a training step takes.", rounds=5, steps=1, batch=8)
    parser.add_argument(
        "--depths", type=int, nargs="+", default=[20, 56], choices=train_step.DEPTHS
    )
    options = parser.parse_args(arguments)
    harness.limit_threads(options.threads)
    shared = harness.circumstances(options.batch, options.threads)
    output = options.output or harness.RESULTS / f"compilation-{shared['backend']}.csv"
    train_step.warm_up(options.batch)
    rows = []
    for depth in options.depths:
        rows += measure(depth, options.batch, options.rounds)
        harness.write_csv(output, rows, shared)
    for row in rows:
        print(
            f"{row.depth:4} {row.side:16}{row.operations:8} operations, "
            f"traced in {row.trace_seconds:.2f} s, compiled in {row.compile_seconds:.2f} s"
        )
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
