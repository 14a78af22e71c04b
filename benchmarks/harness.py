"""Interleaved timing, ratios with their targets, tables and CSV: what the benchmarks share."""

import argparse
import gc
import importlib.metadata
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mf_zoo import files

RESULTS = Path(__file__).resolve().parent / "results"
# `cpu`: seconds of the process alone, on a processor that others use too.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Ratio:
    """Ratio of two times: the median over rounds, and the smallest and largest of a round."""

    median: float
    smallest: float
    largest: float


@dataclass(frozen=True)
class Comparison:
    """One measure of one side against another: a row of the table and of the CSV file.

    Attributes:
        depth: Depth of the network.
        measure: What was timed.
        policy: Dtype policy.
        side, baseline: Names of what was compared.
        side_seconds, baseline_seconds: Median times.
        ratio, ratio_min, ratio_max: `side / baseline` by round: median, smallest, largest.
        target: The largest ratio that is wanted; `None` for no target.
    """

    depth: int
    measure: str
    policy: str
    side: str
    baseline: str
    side_seconds: float
    baseline_seconds: float
    ratio: float
    ratio_min: float
    ratio_max: float
    target: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the median ratio is within the target; `None` where there is no target."""
        return None if self.target is None else self.ratio <= self.target


def ratio(side: Sequence[float], baseline: Sequence[float]) -> Ratio:
    """Ratio of two interleaved series.

    Each round gives a ratio of its own, so that a slow moment of the machine, which both sides
    shared, cancels; their median says what is typical.

    Args:
        side: Seconds by round.
        baseline: Seconds of the same rounds.

    Raises:
        ValueError: For series of unequal length, empty ones or times that are not positive.
    """
    if len(side) != len(baseline) or not side or min(*side, *baseline) <= 0:
        raise ValueError(
            "Both series must hold one positive time for each round. "
            f"Received: {list(side)} and {list(baseline)}"
        )
    by_round = [a / b for a, b in zip(side, baseline, strict=True)]
    return Ratio(statistics.median(by_round), min(by_round), max(by_round))


def compare(
    seconds: Mapping[str, Sequence[float]],
    side: str,
    baseline: str,
    *,
    depth: int,
    measure: str,
    policy: str,
    target: float | None = None,
) -> Comparison:
    """Compares two of several interleaved series, `{side: seconds by round}`."""
    found = ratio(seconds[side], seconds[baseline])
    return Comparison(
        depth=depth,
        measure=measure,
        policy=policy,
        side=side,
        baseline=baseline,
        side_seconds=statistics.median(seconds[side]),
        baseline_seconds=statistics.median(seconds[baseline]),
        ratio=found.median,
        ratio_min=found.smallest,
        ratio_max=found.largest,
        target=target,
    )


def interleave(
    sides: Mapping[str, Callable[[], Any]],
    rounds: int,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Times several functions in turn: A B C, B C A, C A B, ...

    Args:
        sides: Functions by name; each returns only when its work is done.
        rounds: Number of rounds.
        steps: Calls of each function in a round.
        clock: Returns seconds.

    Returns:
        For each side, a list of `rounds` medians of the seconds that a call took.
    """
    names = list(sides)
    medians: dict[str, list[float]] = {name: [] for name in names}
    turn = 0
    for _ in range(rounds):
        taken: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(steps):
            for name in names[turn:] + names[:turn]:
                start = clock()
                sides[name]()
                taken[name].append(clock() - start)
            # Who goes first changes, so that nobody always follows the same neighbour.
            turn = (turn + 1) % len(names)
        for name in names:
            medians[name].append(statistics.median(taken[name]))
    return medians


def timed_once(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that one call took, and what it returned.

    Objects made before are hidden from the garbage collector, so that later code does not pay for
    going through what those before it have left.
    """
    gc.collect()
    gc.freeze()
    try:
        start = time.perf_counter()
        result = function()
        return time.perf_counter() - start, result
    finally:
        gc.unfreeze()


def images_and_labels(batch: int, input_size: int = 32) -> tuple[Any, Any]:
    """A batch of real CIFAR-10 images, uint8, and labels `(batch,)`.

    Args:
        batch: Number of images.
        input_size: Pixels a side; other than 32 by repeating or leaving out pixels.
    """
    import numpy as np

    from mf_zoo import data

    images, labels = data.sample("cifar10")
    chosen = np.random.default_rng(0).permutation(len(images))
    chosen = np.resize(chosen, batch)
    images, labels = images[chosen], labels[chosen]
    nearest = np.arange(input_size) * images.shape[1] // input_size
    # As batches are in training: indexing leaves another order in memory.
    return np.ascontiguousarray(images[:, nearest][:, :, nearest]), labels


def compile_model(model: Any, optimizer: Any) -> Any:
    """Compiles a model for training on logits, in the same way for every side; returns it."""
    import keras

    from mf_zoo import devices

    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=devices.jit_compile(),  # as `mf-zoo train` does
    )
    return model


def quiet() -> None:
    """Silences TensorFlow's chatter; it warns of retracing where many networks are built."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


def say(text: str) -> None:
    """Tells what is being done, on standard error."""
    print(f"... {text}", file=sys.stderr, flush=True)


def parser(
    description: str, rounds: int, steps: int, batch: int | None = 128
) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; `--batch` where it has a default."""
    result = argparse.ArgumentParser(description=description)
    if batch is not None:
        result.add_argument("--batch", type=positive, default=batch, help="images in a batch")
    result.add_argument("--rounds", type=positive, default=rounds, help="rounds; each has a ratio")
    result.add_argument("--steps", type=positive, default=steps, help="steps per side and round")
    result.add_argument("--threads", type=positive, help="threads (default: all)")
    result.add_argument("--output", type=Path, help="CSV file to write")
    return result


def add_clock(parser: argparse.ArgumentParser) -> None:
    """Adds the option `--clock`, one of `CLOCKS`."""
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: on a processor that others use, too"
    )


def positive(text: str) -> int:
    """An argument that is a positive integer."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1. Received: {text}")
    return value


def limit_threads(threads: int | None) -> None:
    """Limits the threads of the active backend, where a number is given.

    Raises:
        SystemExit: If the backend does not let us.
    """
    from mf_zoo import devices

    if threads is not None and not devices.limit_threads(threads):
        raise SystemExit(
            "`--threads` needs a backend that can be limited: start JAX under `taskset -c 0-N`. "
            f"Received: --threads {threads}"
        )


def circumstances(batch: int | Sequence[int], threads: int | None, *others: str) -> dict[str, str]:
    """What every result depends on: date, backend, versions, machine, batch.

    Args:
        batch: Images in a batch, one number or several.
        threads: Number of threads the backend was limited to; `None` for all.
        *others: Names of further packages that take part.
    """
    import keras

    from mf_zoo import devices

    versions = devices.versions() | {name: importlib.metadata.version(name) for name in others}
    return {
        "date": devices.now()[:10],
        "backend": keras.config.backend(),
        "versions": " ".join(f"{name}-{version}" for name, version in versions.items()),
        "machine": devices.device(threads),
        "batch": str(batch) if isinstance(batch, int) else " ".join(map(str, batch)),
    }


def measure_each(
    models: Sequence[str],
    policies: Sequence[str],
    measure: Callable[[str, str], Any],
    output: Path,
    shared: Mapping[str, str],
) -> None:
    """Measures each network under each dtype policy; what is done is in the CSV file at once.

    Args:
        models: Names of networks.
        policies: Dtype policies, which vary slowest.
        measure: Makes a row, as `write_csv` takes it, of a network and a policy.
        output: The CSV file.
        shared: Values of all rows.
    """
    rows = []
    for policy in policies:
        for model in models:
            say(f"{model}, {policy}")
            rows.append(measure(model, policy))
            write_csv(output, rows, shared)
            print(rows[-1], flush=True)
    print(f"written to {output}")


def digest(model: str, weights: str) -> str:
    """The first 12 digits of the SHA-256 digest of weights, by which results know theirs.

    Args:
        model: Name of the network.
        weights: Name of its registered weights, or the folder of a finished run.
    """
    from mf_zoo.cli.common import weights_digest

    return weights_digest(model, weights)[:12]


def write_csv(path: Path, rows: Iterable[Any], shared: Mapping[str, str]) -> None:
    """Writes a CSV file, whole or not at all: one line for each row, a dataclass of the same kind.

    A row that has it says in the last column whether its target was met.
    """
    lines = []
    for row in rows:
        values = {**shared, **asdict(row)}
        if hasattr(row, "met"):
            values["met"] = {None: "", True: "yes", False: "no"}[row.met]
        lines.append({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in values.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_rows(path, lines, lines[0])


def figure(width: float, height: float) -> Any:
    """An empty figure of Matplotlib, in inches; `None`, which it says, without Matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: it needs matplotlib", file=sys.stderr)
        return None
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure as PNG."""
    files.write_atomically(path, lambda part: figure.savefig(part, format="png", dpi=120))


def table(rows: Sequence[Comparison]) -> str:
    """The comparisons as a text table."""
    lines = [
        (
            "depth",
            "measure",
            "policy",
            "side",
            "seconds",
            "against",
            "seconds",
            "ratio",
            "[min, max]",
            "target",
            "met",
        )
    ]
    for row in rows:
        lines.append(
            (
                str(row.depth),
                row.measure,
                row.policy,
                row.side,
                f"{row.side_seconds:.4g}",
                row.baseline,
                f"{row.baseline_seconds:.4g}",
                f"{row.ratio:.3f}",
                f"[{row.ratio_min:.3f}, {row.ratio_max:.3f}]",
                "" if row.target is None else f"<= {row.target:.2f}",
                {None: "", True: "yes", False: "NO"}[row.met],
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def report(rows: Sequence[Comparison], shared: Mapping[str, str], output: Path) -> None:
    """Prints the table and writes the CSV file."""
    print(", ".join(f"{name} {value}" for name, value in shared.items()))
    print(table(rows))
    judged = [row.met for row in rows if row.target is not None]
    if judged:
        print(f"{sum(judged)} of {len(judged)} targets met")
    write_csv(output, rows, shared)
    print(f"written to {output}")
