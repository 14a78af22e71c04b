"""`python -m benchmarks.determinism`: whether the same training gives the same weights.

`MFResNet20` is trained on real images from the same first weights and the same batches, in a
process of its own each time: twice alike, with one thread and with two, and on the three backends.
What is compared is every weight, momentum aside. The difference is that of the weights after a
number of steps: the norm of the difference over the norm of what the training changed. 0 is equal
to the bit.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import harness
from mf_zoo import files

MODEL = "MFResNet20"
BACKENDS = ("tensorflow", "jax", "torch")
STEPS = (1, 10, 50)
BATCH = 50
RATE = 0.1


@dataclass(frozen=True)
class Found:
    """Two trainings compared: a row of the CSV file.

    Attributes:
        policy: Dtype policy.
        one, other: Backend and threads of each, such as `"torch, 1 thread"`.
        steps: Steps of both trainings.
        difference: Norm of the difference of the weights over the norm of what training changed.
        loss, other_loss: The loss of the last of these steps.
    """

    policy: str
    one: str
    other: str
    steps: int
    difference: float
    loss: float
    other_loss: float


def difference(one: Mapping[str, Any], other: Mapping[str, Any], first: Mapping[str, Any]) -> float:
    """How far two sets of arrays are from each other, measured by the way of `one` from `first`."""
    import numpy as np

    def norm(a, b):
        squares = (np.sum(np.subtract(a[name], b[name], dtype="float64") ** 2) for name in first)
        return float(np.sqrt(sum(squares)))

    return norm(one, other) / norm(one, first)


def train(start: Path, folder: Path, policy: str, threads: int) -> None:
    """Trains from the weights in `start` and saves the weights after each of `STEPS`.

    A `start` that is not there is made, of random weights.
    """
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import keras
    import numpy as np

    from mf_zoo import applications, data, devices, optimizers

    devices.limit_threads(threads)
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    model = getattr(applications, MODEL)()
    names = [weight.path for weight in model.weights]

    def arrays():
        values = zip(names, model.weights, strict=True)
        return {name: keras.ops.convert_to_numpy(value) for name, value in values}

    if not start.exists():
        np.savez(start, **arrays())
    with np.load(start, allow_pickle=False) as first:
        for name, weight in zip(names, model.weights, strict=True):
            weight.assign(first[name])
    model.compile(
        optimizers.MeanFieldSGD(RATE, momentum=0.9, nesterov=True, weight_decay=5e-4),
        keras.losses.SparseCategoricalCrossentropy(),
    )
    images, labels = data.sample("cifar10")
    batches = data.batches(
        images,
        labels,
        BATCH,
        shuffle=True,
        augment=data.Augmentation(padding=4, flip=True),
        seed=0,
        backend="pydataset",
    )
    done = 0
    while done < max(STEPS):
        batches.epoch = done // len(batches)
        for x, y in (batches[k] for k in range(len(batches))):
            loss = float(model.train_on_batch(x, y))
            done += 1
            if done in STEPS:
                np.savez(folder / f"{done}.npz", loss=loss, **arrays())


def measure(policies: Sequence[str], backends: Sequence[str]) -> Iterator[Found]:
    """Trains in processes of their own and compares them."""
    import numpy as np

    def read(path):
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    for policy in policies:
        with tempfile.TemporaryDirectory() as scratch:
            start = Path(scratch) / "start.npz"

            def run(backend, threads, name, policy=policy, start=start):
                folder = start.with_name(f"{backend}-{threads}-{name}")
                folder.mkdir()
                command = [sys.executable, "-m", "benchmarks.determinism", "--worker"]
                environment = {
                    **os.environ,
                    "KERAS_BACKEND": backend,
                    "OMP_NUM_THREADS": str(threads),
                }
                arguments = [start, folder, policy, threads]
                subprocess.run(
                    [*command, *map(str, arguments)],
                    env={**environment, "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"},
                    check=True,
                )
                return f"{backend}, {threads} thread{'s' if threads > 1 else ''}", folder

            alone = {backend: run(backend, 1, "first") for backend in backends}
            pairs = []
            for backend in backends:
                pairs.append((alone[backend], run(backend, 1, "again")))
                pairs.append((alone[backend], run(backend, 2, "first")))
            pairs += [(alone[backends[-1]], alone[other]) for other in backends[:-1]]
            for (one, here), (other, there) in pairs:
                for steps in STEPS:
                    ours, theirs = (read(folder / f"{steps}.npz") for folder in (here, there))
                    losses = float(ours.pop("loss")), float(theirs.pop("loss"))
                    distance = difference(ours, theirs, read(start))
                    yield Found(policy, one, other, steps, distance, *losses)


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """The rows as a Markdown table, a column for each number of steps."""
    steps = sorted({int(row["steps"]) for row in rows})
    lines = [
        f"| dtype policy | one | other | {' | '.join(f'after {n}' for n in steps)} |",
        "|---|---|---|" + "---|" * len(steps),
    ]
    found: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        key = row["policy"], row["one"], row["other"]
        found.setdefault(key, {})[int(row["steps"])] = float(row["difference"])
    for key, values in found.items():
        cells = ["equal" if values[n] == 0 else f"{values[n]:.0e}" for n in steps]
        lines.append(f"| {' | '.join([*key, *cells])} |")
    return "\n".join(lines)


def readme_table() -> str:
    """The table of the committed results."""
    return table(files.read_rows(harness.RESULTS / "determinism.csv"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="benchmarks.determinism", description=__doc__)
    parser.add_argument("--policies", nargs="+", default=["float32", "mixed_bfloat16"])
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS)
    parser.add_argument("--output", type=Path, default=harness.RESULTS / "determinism.csv")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        start, folder, policy, threads = options.worker
        train(Path(start), Path(folder), policy, int(threads))
        return 0
    rows = [asdict(found) for found in measure(options.policies, options.backends)]
    files.write_rows(options.output, rows, Found.__dataclass_fields__)
    print(table(files.read_rows(options.output)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
