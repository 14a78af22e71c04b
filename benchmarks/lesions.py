"""`python -m benchmarks.lesions --data-dir D`: trained networks without a block, or shuffled.

The shipped networks lose one block after another, with the statistics of the training and with
those that are estimated anew for each lesion, and their blocks are applied in random orders at each
Kendall tau distance from the trained one (the same orders for all networks). Nothing is trained.
"""

import argparse
import functools
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from mf_zoo import files

MODELS = ("MFResNet20", "ResNet20")
DATASETS = ("cifar10", "cifar100")
TRAINED, ESTIMATED = "trained", "estimated"
LESION, SHUFFLE = "lesion", "shuffle"


@dataclass(frozen=True)
class Found:
    """One network with one change: a row of the CSV file.

    Attributes:
        model: Name of the network.
        weights: Name of its registered weights.
        digest: Of the weights, as `harness.digest` gives it.
        change: `"lesion"` or `"shuffle"`.
        statistics: `"trained"`, or `"estimated"` anew for this row.
        where: The block that is missing, stage and depth, as in `"1.2"`; the distance of the order.
            Empty and 0: nothing is changed.
        error: Top-1 error in %, for shuffles the mean over the orders drawn.
        orders: Number of different orders.
    """

    model: str
    weights: str
    digest: str
    change: str
    statistics: str
    where: str
    error: float
    orders: int = 1


def measure(
    model: str, weights: str, images: Any, labels: Any, training: Any, samples: int
) -> Iterator[Found]:
    """Measures one network.

    Args:
        model, weights: Which one.
        images, labels: What it is evaluated on.
        training: Augmented training images in batches, to estimate statistics on.
        samples: Orders drawn at each distance.
    """
    from mf_zoo import applications, theory
    from mf_zoo.layers import stages

    network = applications.get(model)(weights=weights)
    found = functools.partial(Found, model, weights, harness.digest(model, weights))
    for kind, given in ((TRAINED, None), (ESTIMATED, training)):
        harness.say(f"{model}, {weights}: lesions, {kind} statistics")
        lesions = theory.lesion(network, images, labels, recalibrate_on=given)
        yield found(LESION, kind, "", lesions[0].intact_error)
        for one in lesions:
            block = one.blocks[0]
            where = f"{block.stage.removeprefix('stage')}.{block.position + 1}"
            yield found(LESION, kind, where, one.error)
    harness.say(f"{model}, {weights}: shuffles")
    sizes = [stage.num_particles for stage in stages(network)]
    for distance in range(sum(n * (n - 1) // 2 for n in sizes) + 1):
        drawn = theory.shuffle(network, images, labels, k=distance, samples=samples)
        errors = {one.orders: one.error for one in drawn}
        mean = statistics.fmean(one.error for one in drawn)
        yield found(SHUFFLE, TRAINED, str(distance), mean, len(errors))


def table(rows: Iterable[Mapping[str, Any]], change: str) -> str:
    """A Markdown table of the lesions or of the shuffles in rows as in the CSV file."""
    lines: dict[tuple[str, ...], dict[str, float]] = {}
    for row in rows:
        if row["change"] == change:
            key = tuple(row[name] for name in ("model", "weights", "statistics"))
            lines.setdefault(key, {})[row["where"]] = float(row["error"])
    columns = list(next(iter(lines.values())))
    head = ["network", "weights", "statistics", *(where or "whole" for where in columns)]
    if change == LESION:
        head.append("mean rise")
    table = [f"| {' | '.join(head)} |", "|---|---|---" + "|---:" * (len(head) - 3) + "|"]
    for key, errors in lines.items():
        values = [errors[where] for where in columns]
        if change == LESION:
            values.append(statistics.fmean(values[1:]) - values[0])
        table.append(f"| {' | '.join((*key, *(f'{value:.1f}' for value in values)))} |")
    return "\n".join(table)


def readme_table(change: str) -> str:
    """The committed result as a table with its circumstances."""
    rows = files.read_rows(harness.RESULTS / "lesions-torch.csv")
    row = rows[0]
    return (
        f"{table(rows, change)}\n\nError in %, the first {int(row['images']):,} test images; "
        f"statistics estimated on the first {int(row['calibrated_on']):,} training images, "
        f"augmented; {row['samples']} orders drawn at each distance; {row['date']}, "
        f"{row['versions']}."
    )


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = argparse.ArgumentParser(description="Trained networks without a block, or shuffled.")
    parser.add_argument("--data-dir", type=Path, metavar="D", required=True)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL")
    parser.add_argument("--weights", nargs="+", default=DATASETS, metavar="W", help="registered")
    parser.add_argument("--limit", type=harness.positive, default=2000, help="test images")
    parser.add_argument("--calibrate", type=harness.positive, default=500, metavar="N")
    parser.add_argument("--samples", type=harness.positive, default=5, help="orders at a distance")
    parser.add_argument("--batch", type=harness.positive, default=250, help="images in a batch")
    parser.add_argument("--threads", type=harness.positive, metavar="N")
    parser.add_argument("--output", type=Path, metavar="FILE", help="CSV file to write")
    options = parser.parse_args(arguments)

    harness.limit_threads(options.threads)
    from mf_zoo import data, weights

    shared = harness.circumstances(options.batch, options.threads)
    shared |= {"images": str(options.limit), "calibrated_on": str(options.calibrate)}
    shared |= {"samples": str(options.samples)}
    output = options.output or harness.RESULTS / f"lesions-{shared['backend']}.csv"
    rows: list[Found] = []
    for name in options.weights:
        for model in options.models:
            dataset = weights.get(model, name).dataset
            images, labels = data.load(
                dataset, f"test[:{options.limit}]", data_dir=options.data_dir
            )
            training = data.load(dataset, f"train[:{options.calibrate}]", data_dir=options.data_dir)
            batches = data.batches(
                *(*training, options.batch),
                augment=data.Augmentation(padding=4, flip=True),
                backend="pydataset",
            )
            for row in measure(model, name, images, labels, batches, options.samples):
                rows.append(row)
                harness.write_csv(output, rows, shared)
    for change in (LESION, SHUFFLE):
        print(table(map(asdict, rows), change))
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
