"""`python -m benchmarks.integrators --data-dir D`: integrators on trained networks.

Networks that were trained with Euler's method are evaluated with others, without training: as they
are, and with each block split into equal parts of its step, where all methods come nearer to the
same. The statistics of BatchNormalization are those of the training, and with `--calibrate N` also
those that are estimated anew on N training images for each method. The distance is that of the last
stage's outputs from those of Euler's method with the same parts and the same kind of statistics:
the norm of the difference over the norm, for all images together.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness

MODELS = ("MFResNet20", "ResNet20")
DATASETS = ("cifar10", "cifar100")


@dataclass(frozen=True)
class Found:
    """One network with one integrator: a row of the CSV file.

    Attributes:
        model: Name of the network.
        weights: Name of its registered weights, trained with Euler's method.
        parts: Equal parts that each block is split into.
        integrator: Name of the integrator.
        statistics: `"trained"`, or `"estimated"` anew on training images for this row.
        error: Top-1 error in %.
        changed: Images in % whose predicted class is another than that of the network as it was
            trained.
        distance: Relative distance of the last stage's outputs from Euler's.
    """

    model: str
    weights: str
    parts: int
    integrator: str
    statistics: str
    error: float
    changed: float
    distance: float


def distance(states: Any, reference: Any) -> float:
    """The norm of the difference of two arrays over the norm of the second."""
    import numpy as np

    difference = np.subtract(states, reference, dtype="float64")
    return float(np.linalg.norm(difference) / np.linalg.norm(reference.astype("float64")))


def outputs(network: Any, integrator: str, images: Any, batch: int) -> tuple[Any, Any]:
    """The last stage's outputs and the scores of a network whose stages get an integrator."""
    import keras

    from mf_zoo.layers import integrators, stages

    found = stages(network)
    for stage in found:
        stage.integrator = integrators.get(integrator)
    # A new model, for what another has compiled steps as before.
    probe = keras.Model(network.input, [found[-1].output, network.output])
    return probe.predict(images, batch_size=batch, verbose=0)


def measure(
    model: str,
    weights: str,
    parts: Sequence[int],
    images: Any,
    labels: Any,
    calibration: Any,
    batch: int,
) -> Iterator[Found]:
    """Measures one trained network.

    Args:
        model: Name of the network.
        weights: Name of registered weights.
        parts: Numbers of parts, each a refinement of its own.
        images, labels: What it is evaluated on.
        calibration: Training images to estimate statistics on; `None` for none.
        batch: Images in a batch.
    """
    import numpy as np

    from mf_zoo import applications, depth
    from mf_zoo.layers import integrators, stages

    trained = applications.get(model)(weights=weights, classifier_activation=None)
    predicted = outputs(trained, "euler", images, batch)[1].argmax(1)
    for count in parts:
        particles = [count * stage.num_particles for stage in stages(trained)]
        network = depth.refine(trained, particles)
        before = [np.array(value) for value in network.get_weights()]
        for statistics in ("trained", "estimated") if calibration is not None else ("trained",):
            reference = None
            for name in integrators.names():
                harness.say(f"{model}, {weights}, {count} parts, {name}, {statistics} statistics")
                network.set_weights(before)
                for stage in stages(network):
                    stage.integrator = integrators.get(name)
                if statistics == "estimated":
                    depth.recalibrate(network, calibration, batch_size=batch)
                states, scores = outputs(network, name, images, batch)
                reference = states if reference is None else reference  # Euler's come first
                yield Found(
                    model=model,
                    weights=weights,
                    parts=count,
                    integrator=name,
                    statistics=statistics,
                    error=100 * float(np.mean(scores.argmax(1) != labels)),
                    changed=100 * float(np.mean(scores.argmax(1) != predicted)),
                    distance=distance(states, reference),
                )


def table(rows: Sequence[Any]) -> list[str]:
    """Rows of a Markdown table: error and distance by integrator, a line for each other setting."""
    cells: dict[tuple, dict[str, str]] = {}
    for row in rows:
        line = cells.setdefault((row.model, row.weights, row.parts, row.statistics), {})
        line[row.integrator] = f"{row.error:.2f} ({row.distance:.2f})"
    names = list(dict.fromkeys(row.integrator for row in rows))
    lines = ["| network | weights | parts | statistics | " + " | ".join(names) + " |"]
    lines.append("|---" * (4 + len(names)) + "|")
    for key, line in cells.items():
        lines.append("| " + " | ".join(map(str, (*key, *map(line.get, names)))) + " |")
    return lines


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = argparse.ArgumentParser(description="Integrators on trained networks.")
    parser.add_argument("--data-dir", type=Path, metavar="D", required=True)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL")
    parser.add_argument("--weights", nargs="+", default=DATASETS, metavar="W", help="registered")
    parser.add_argument("--parts", type=harness.positive, nargs="+", default=[1, 4])
    parser.add_argument("--limit", type=harness.positive, default=2000, help="test images")
    parser.add_argument(
        "--calibrate", type=harness.positive, metavar="N", help="estimate statistics on N images"
    )
    parser.add_argument("--batch", type=harness.positive, default=250, help="images in a batch")
    parser.add_argument("--threads", type=harness.positive, metavar="N")
    parser.add_argument("--output", type=Path, metavar="FILE", help="CSV file to write")
    options = parser.parse_args(arguments)

    harness.limit_threads(options.threads)
    from mf_zoo import data, weights

    shared = harness.circumstances(options.batch, options.threads)
    shared |= {"images": str(options.limit), "calibrated_on": str(options.calibrate or "")}
    output = options.output or harness.RESULTS / f"integrators-{shared['backend']}.csv"
    rows: list[Found] = []
    for name in options.weights:
        for model in options.models:
            dataset = weights.get(model, name).dataset
            images, labels = data.load(
                dataset, f"test[:{options.limit}]", data_dir=options.data_dir
            )
            calibration = None
            if options.calibrate:
                split = f"train[:{options.calibrate}]"
                calibration, _ = data.load(dataset, split, data_dir=options.data_dir)
            measured = measure(
                model, name, options.parts, images, labels, calibration, options.batch
            )
            for row in measured:
                rows.append(row)
                harness.write_csv(output, rows, shared)
    print("\n".join(table(rows)))
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
