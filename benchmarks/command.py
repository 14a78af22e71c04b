"""`python -m benchmarks.command`: how long the `mf-zoo` command takes for what needs no backend.

Each command line is run in processes of its own, in turns with an empty Python program. What counts
is the time on the processor, user and system, of which other programs take nothing away.
"""

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import harness

TARGET = 0.5  # seconds on the processor
EMPTY = "nothing, Python alone"
LINES: dict[str, list[str]] = {
    "mf-zoo --help": ["--help"],
    "mf-zoo list": ["list"],
    "mf-zoo info MFResNet110": ["info", "MFResNet110"],
    "mf-zoo recipes": ["recipes"],
    "mf-zoo train without its arguments": ["train"],
}


@dataclass(frozen=True)
class Answer:
    """How long a command line takes: a row of the CSV file.

    Attributes:
        command: The command line.
        processor_seconds: User and system time of its process, the median.
        wall_seconds: Until its end, the median.
        target: The largest processor time that is wanted; `None` for no target.
    """

    command: str
    processor_seconds: float
    wall_seconds: float
    target: float | None

    @property
    def met(self) -> bool | None:
        """Whether the target is met; `None` where there is none."""
        return None if self.target is None else self.processor_seconds <= self.target


def run(program: Sequence[str]) -> float:
    """Runs a program; returns its seconds on the processor.

    Raises:
        RuntimeError: If it ends by a traceback or a signal.
    """
    before = os.times()
    process = subprocess.run(program, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    after = os.times()
    if process.returncode not in (0, 2):
        raise RuntimeError(f"A command must answer. Received: {program}: {process.stderr}")
    return (
        after.children_user - before.children_user + after.children_system - before.children_system
    )


def measure(rounds: int, steps: int) -> list[Answer]:
    """Measures every command line."""
    programs = {EMPTY: [sys.executable, "-c", ""]}
    programs |= {name: [sys.executable, "-m", "mf_zoo.cli", *line] for name, line in LINES.items()}
    processor: dict[str, list[float]] = {name: [] for name in programs}

    def timed(name: str) -> None:
        processor[name].append(run(programs[name]))

    sides = {name: (lambda name=name: timed(name)) for name in programs}
    harness.interleave(sides, 1, 1)  # reads the files from the disk
    for seconds in processor.values():
        seconds.clear()
    wall = harness.interleave(sides, rounds, steps)
    return [
        Answer(
            name,
            statistics.median(processor[name]),
            statistics.median(wall[name]),
            None if name == EMPTY else TARGET,
        )
        for name in programs
    ]


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = harness.parser("The mf-zoo command where it needs no backend.", 5, 1, batch=None)
    options = parser.parse_args(arguments)
    rows = measure(options.rounds, options.steps)
    harness.quiet()
    shared = harness.circumstances(0, options.threads)
    del shared["batch"], shared["backend"]
    for row in rows:
        print(
            f"{row.command:36}{row.processor_seconds:8.3f} s, its end after {row.wall_seconds:.3f}"
        )
    output = options.output or harness.RESULTS / "command.csv"
    harness.write_csv(output, rows, shared)
    print(f"written to {output}")
    return 0 if all(row.met in (None, True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
