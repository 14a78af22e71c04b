"""`python -m benchmarks.allocator`: training on a CPU where glibc keeps memory, and where not.

A training step allocates and frees hundreds of megabytes. By default glibc returns large blocks to
the system and takes them again page by page. `mf-zoo campaign` starts its runs with the environment
variables of `mf_zoo.devices.KEEP_MEMORY`, so that it keeps them. Each side trains in processes of
its own, in turns; what counts is their time on the processor, user and system.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from dataclasses import dataclass

from benchmarks import harness
from mf_zoo.devices import KEEP_MEMORY

MODEL = "ResNet20"


@dataclass(frozen=True)
class Row:
    """A row of the CSV file.

    Attributes:
        side: With or without the variables.
        user_seconds, system_seconds: Of a training step, medians.
        page_faults: In a training step, the median.
        ratio: Processor time by that of the default, the median of rounds.
    """

    side: str
    user_seconds: float
    system_seconds: float
    page_faults: float
    ratio: float


def train(steps: int, batch: int) -> dict[str, float]:
    """Trains for some steps by `fit`; what a step took of the processor."""
    harness.limit_threads(1)
    from mf_zoo.training import assembly, get_recipe

    images, labels = harness.images_and_labels(batch * steps)
    recipe = get_recipe("quick", batch_size=batch)
    network = assembly.build_network(MODEL, recipe, 10)
    assembly.compile_network(network, recipe, 0.01, 0)
    batches = assembly.make_batches(images, labels, recipe, 0, 10)
    network.fit(batches, shuffle=False, verbose=0)
    before = resource.getrusage(resource.RUSAGE_SELF)
    network.fit(batches, shuffle=False, verbose=0)
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "user": (after.ru_utime - before.ru_utime) / steps,
        "system": (after.ru_stime - before.ru_stime) / steps,
        "faults": (after.ru_minflt - before.ru_minflt) / steps,
    }


def measure(rounds: int, steps: int, batch: int) -> list[Row]:
    """Trains on both sides in turns."""
    import statistics

    sides: dict[str, dict[str, str]] = {"default": {}, "memory kept": KEEP_MEMORY}
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    inherited = {key: value for key, value in os.environ.items() if key not in KEEP_MEMORY}
    for number in range(rounds):
        for side, variables in list(sides.items())[:: 1 if number % 2 else -1]:
            harness.say(f"round {number + 1} of {rounds}, {side}")
            line = [*("-m", "benchmarks.allocator", "--child"), f"--steps={steps}"]
            process = subprocess.run(
                [sys.executable, *line, f"--batch={batch}"],
                env={**inherited, **variables},
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            found[side].append(json.loads(process.stdout.splitlines()[-1]))

    def median(side: str, key: str) -> float:
        return statistics.median(one[key] for one in found[side])

    totals = {side: [one["user"] + one["system"] for one in found[side]] for side in sides}
    return [
        Row(
            side=side,
            user_seconds=median(side, "user"),
            system_seconds=median(side, "system"),
            page_faults=median(side, "faults"),
            ratio=harness.ratio(totals[side], totals["default"]).median,
        )
        for side in sides
    ]


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    harness.quiet()
    parser = harness.parser("Training where glibc keeps memory, and where not.", 3, 10)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        print(json.dumps(train(options.steps, options.batch)))
        return 0
    rows = measure(options.rounds, options.steps, options.batch)
    for row in rows:
        print(row)
    shared = harness.circumstances(options.batch, 1)
    output = options.output or harness.RESULTS / f"allocator-{shared['backend']}.csv"
    harness.write_csv(output, rows, {**shared, "model": MODEL})
    print(f"written to {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
