"""`python -m benchmarks.integrators --data-dir D`: integrators on trained networks.

Networks that were trained with Euler's method are evaluated with others, without training: as they
are, and with each block split into equal parts of its step, where all methods come nearer to the
same. The statistics of BatchNormalization are those of the training, and with `--calibrate N` also
those that are estimated anew on N training images for each method. The distance is that of the last
stage's outputs from those of Euler's method with the same parts and the same kind of statistics:
the norm of the difference over the norm, for all images together.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from mf_zoo import files

MODELS = ("MFResNet20", "ResNet20")
DATASETS = ("cifar10", "cifar100")


@dataclass(frozen=True)
class Found:
    """One network with one integrator: a row of the CSV file.

    Attributes:
        model: Name of the network.
        weights: Name of its registered weights, trained with Euler's method.
        digest: Of the weights, as `harness.digest` gives it.
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
    digest: str
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


def probe(network: Any, integrator: str) -> Any:
    """A model of the last stage's outputs and the scores, with an integrator in all stages."""
    import keras

    from mf_zoo.layers import integrators, stages

    found = stages(network)
    for stage in found:
        stage.integrator = integrators.get(integrator)
    # A new model, for what another has compiled steps as before.
    return keras.Model(network.input, [found[-1].output, network.output])


def measure(
    model: str, weights: str, parts: int, images: Any, labels: Any, calibration: Any, batch: int
) -> Iterator[Found]:
    """Measures one trained network with each integrator.

    Args:
        model: Name of the network.
        weights: Name of registered weights.
        parts: Number of parts that each block is split into.
        images, labels: What it is evaluated on.
        calibration: Batches of training images to estimate statistics on; `None` for none.
        batch: Images in a batch.
    """
    import numpy as np

    from mf_zoo import applications, depth
    from mf_zoo.layers import integrators, stages

    def outputs(part: Any) -> tuple[Any, Any]:
        return part.predict(images, batch_size=batch, verbose=0)

    trained = applications.get(model)(weights=weights, classifier_activation=None)
    predicted = outputs(probe(trained, "euler"))[1].argmax(1)
    network = depth.refine(trained, [parts * stage.num_particles for stage in stages(trained)])
    before = [np.array(value) for value in network.get_weights()]
    reference: dict[str, Any] = {}
    digest = harness.digest(model, weights)
    for name in integrators.names():
        part = probe(network, name)
        for statistics in ("trained", "estimated") if calibration is not None else ("trained",):
            harness.say(f"{model}, {weights}, {parts} parts, {name}, {statistics} statistics")
            network.set_weights(before)
            if statistics == "estimated":
                depth.recalibrate(network, calibration)
            states, scores = outputs(part)
            reference.setdefault(statistics, states)  # Euler's method comes first
            yield Found(
                model=model,
                weights=weights,
                digest=digest,
                parts=parts,
                integrator=name,
                statistics=statistics,
                error=100 * float(np.mean(scores.argmax(1) != labels)),
                changed=100 * float(np.mean(scores.argmax(1) != predicted)),
                distance=distance(states, reference[statistics]),
            )


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of rows as in the CSV file: errors and distances by integrator."""
    cells: dict[tuple, dict[str, str]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("model", "weights", "parts", "statistics"))
        found = f"{float(row['error']):.2f} ({float(row['distance']):.2f})"
        cells.setdefault(key, {})[row["integrator"]] = found
    names = list(dict.fromkeys(row["integrator"] for row in rows))
    lines = ["| network | weights | parts | statistics | " + " | ".join(names) + " |"]
    lines.append("|---" * (4 + len(names)) + "|")
    for key, line in cells.items():
        lines.append("| " + " | ".join(map(str, (*key, *map(line.get, names)))) + " |")
    return "\n".join(lines)


def readme_table() -> str:
    """The committed result as a table with its circumstances."""
    rows = files.read_rows(harness.RESULTS / "integrators-tensorflow.csv")
    row = rows[0]
    return (
        f"{table(rows)}\n\n"
        f"The first {int(row['images']):,} test images; statistics estimated on the first "
        f"{int(row['calibrated_on']):,} training images, augmented; {row['date']}, "
        f"{row['versions']}."
    )


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
    for parts, name, model in itertools.product(options.parts, options.weights, options.models):
        dataset = weights.get(model, name).dataset
        split = f"test[:{options.limit}]"
        images, labels = data.load(dataset, split, data_dir=options.data_dir)
        calibration = None
        if options.calibrate:
            split = f"train[:{options.calibrate}]"
            training = data.load(dataset, split, data_dir=options.data_dir)
            augment = data.Augmentation(padding=4, flip=True)  # as they were trained
            calibration = data.batches(
                *training, options.batch, augment=augment, backend="pydataset"
            )
        for row in measure(model, name, parts, images, labels, calibration, options.batch):
            rows.append(row)
            harness.write_csv(output, rows, shared)
    print(table([asdict(row) for row in rows]))
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
